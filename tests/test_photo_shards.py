"""A pipeline over shards gives the pixels and labels that one over the same files gives."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from fastselfie.pipelines.opening import open_pipeline
from fastselfie.pipelines.source import EncodedImages, Files
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import Batch, View
from tests.packed_shards import add, write_packed
from tests.photographs import CPU, jpeg, picture
from tests.photographs import write as write_files

pytest.importorskip("nvidia.dali")
from fastselfie.pipelines.loading import Loading

CLASSES, LABELS = ("ant", "bee", "cat"), [2, 0, 1, 1, 0, 2, 2]
IMAGES = [jpeg(picture(40 + index, 60, index)) for index in range(len(LABELS))]


def foreign(folder: Path) -> Path:
    """Tar files without an index."""
    folder.mkdir()
    for first in (0, 4):
        with tarfile.open(folder / f"{first}.tar", "w") as tar:
            for index in range(first, min(first + 4, len(IMAGES))):
                add(tar, f"{index}.cls", str(LABELS[index]).encode())
                add(tar, f"{index}.jpg", IMAGES[index])
    return folder


def batches(images: EncodedImages) -> list[Batch]:
    view = View(size=16, grid=2, crop="resized", flip=True)
    pipeline = open_pipeline(images, view=view, seed=5, device=CPU, loading=Loading(threads=2, prefetch=2, batch=4))
    requests = [(start, start + 4) for start in range(0, 20, 4)]
    pipeline.announce(requests)
    return [pipeline.batch(*request) for request in requests]


@pytest.mark.parametrize("kind", ["packed", "foreign", "URL"])
def test_the_same_batches(kind: str, tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", [(f"{index}.jpg", data) for index, data in enumerate(IMAGES)], LABELS)
    assert isinstance(files, Files)
    if kind == "foreign":
        spec = str(foreign(tmp_path / "tars"))
    else:
        spec = str(write_packed(tmp_path / "packed", IMAGES, labels=LABELS, classes=CLASSES))
    if kind == "URL":
        import fsspec

        system, spec = fsspec.filesystem("memory"), "memory://test_photo_shards"
        for path in (tmp_path / "packed").iterdir():
            system.pipe_file(f"/test_photo_shards/{path.name}", path.read_bytes())
    train = open_source(spec, 16, tmp_path / "kept").train
    assert isinstance(train, EncodedImages)
    for ours, expected in zip(batches(train), batches(files), strict=True):
        assert torch.equal(ours.pixels, expected.pixels)
        assert torch.equal(ours.labels_B, expected.labels_B)
        assert ours.labels_B.tolist() == [LABELS[index] for index in ours.sample_B.tolist()]
