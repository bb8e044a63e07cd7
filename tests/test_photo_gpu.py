"""Views of files decoded on a CUDA device against those decoded on the CPU. `make gpu-check` runs these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastselfie.pipelines.decoder import DaliDecoder
from fastselfie.pipelines.file_pipeline import FilePipeline
from fastselfie.pipelines.gpu_decoding import GpuDecoding
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.names import Names
from fastselfie.pipelines.source import Files
from fastselfie.pipelines.view import Batch, View
from fastselfie.randomness import epoch_order
from tests.photographs import flat_folder, images_of, jpeg, picture, pipeline, png, undecodable, write
from tests.turbo_runs import dali_windows

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
# Levels of 255. nvJPEG's inverse transform rounds otherwise than libjpeg-turbo's, and it repeats subsampled chroma that
# libjpeg-turbo interpolates: that one, made to repeat it too, comes to 16 here.
MEAN, PERCENTILE_99 = 2.0, 24.0
IMAGES, BATCH = 60, 20
VIEWS = {
    "resized": View(size=224, grid=7, crop="resized", flip=True),
    "resized small": View(size=32, grid=4, crop="resized", flip=True),
    "plain": View(size=224, grid=7),
    "padded": View(size=32, grid=4, pad=4, flip=True),
}
REQUESTS = [(start, start + BATCH) for start in range(0, 2 * IMAGES, BATCH)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What devices decode by different ways: baseline, progressive, subsampled, grey, turned, PNG."""
    kinds: list[dict[str, Any]] = [
        {},
        {"subsampling": 2},
        {"progressive": True},
        {"mode": "L"},
        {"orientation": 6},
        {"subsampling": 1},
    ]
    images = []
    for index in range(IMAGES):
        image = picture(150 + 5 * index, 400 - 3 * index, index)
        data = png(image) if index % 7 == 6 else jpeg(image, **kinds[index % 7])
        images.append((f"{index:02}.{'png' if index % 7 == 6 else 'jpg'}", data))
    return write(tmp_path_factory.mktemp("files"), images, range(IMAGES))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[DaliDecoder, list[Encoded]]:
    """What each pipeline gives its decoder from now on, the first pipeline first."""
    given: dict[DaliDecoder, list[Encoded]] = {}
    schedule = DaliDecoder.schedule

    def recording(decoder: DaliDecoder, encoded: Encoded) -> None:
        given.setdefault(decoder, []).append(encoded)
        schedule(decoder, encoded)

    monkeypatch.setattr(DaliDecoder, "schedule", recording)
    return given


def both(files: Files, view: View) -> Iterator[tuple[Batch, Batch]]:
    """The same batches, decoded on the device and on the CPU."""
    on_device = pipeline(files, view, batch=BATCH, threads=4, prefetch=2, device=DEVICE)
    on_cpu = pipeline(files, view, batch=BATCH, threads=4, prefetch=2)
    for source in (on_device, on_cpu):
        source.announce(REQUESTS)
    for request in REQUESTS:
        yield on_device.batch(*request), on_cpu.batch(*request)


def test_windows_are_the_cpus(files: Files, runs: dict[DaliDecoder, list[Encoded]]) -> None:
    view = VIEWS["resized"]
    batches = len(list(both(files, view)))
    on_device, on_cpu = (
        [dali_windows(run.data, run.draws, view.min_area, device_id).tolist() for run in given]
        for given, device_id in zip(runs.values(), (DEVICE.index, None), strict=True)
    )
    assert len(on_device) == batches
    assert on_device == on_cpu
    assert len({tuple(window) for batch in on_device for window in batch}) > IMAGES


@pytest.mark.parametrize("name", VIEWS)
def test_batches_are_the_cpus(name: str, files: Files) -> None:
    """Keys, corners and flips exactly, pixels within the tolerance; everything on the device."""
    for ours, theirs in both(files, VIEWS[name]):
        for field in ("epoch_B", "sample_B", "labels_B", "corner_B2", "flip_B"):
            mine, expected = getattr(ours, field), getattr(theirs, field)
            assert (mine is None) == (expected is None)
            if mine is not None:
                assert mine.device == DEVICE
                assert torch.equal(mine.cpu(), expected)
        assert (ours.pixels.device, ours.pixels.dtype) == (DEVICE, torch.uint8)
        assert ours.pixels.shape == theirs.pixels.shape
        for sample, mine, expected in zip(
            theirs.sample_B.tolist(), images_of(ours.pixels), images_of(theirs.pixels), strict=True
        ):
            apart = np.abs(mine.astype(np.int16) - expected)
            assert apart.mean() <= MEAN, files.names[sample]
            assert np.percentile(apart, 99) <= PERCENTILE_99, files.names[sample]


def test_decoding_on_the_cpu_gives_the_same_there(files: Files) -> None:
    """libjpeg-turbo's pixels, copied: the repeatable way to feed a GPU."""
    pytest.importorskip("simplejpeg")
    here = pipeline(files, VIEWS["resized"], batch=BATCH, decoder="turbo")
    there = pipeline(files, VIEWS["resized"], batch=BATCH, threads=4, prefetch=2, device=DEVICE, decoder="turbo")
    for request in REQUESTS:
        expected, batch = here.batch(*request), there.batch(*request)
        assert (batch.pixels.device, batch.sample_B.device) == (DEVICE, DEVICE)
        assert torch.equal(batch.pixels.cpu(), expected.pixels)


def test_without_the_hardware_decoder_a_batch_is_the_same_again(files: Files) -> None:
    """In other company too: no image's pixels depend on the batch that it comes in."""
    loading = Loading(threads=2, prefetch=2, batch=BATCH, gpu=GpuDecoding(hardware_share=0, regions=False))
    one, other = (FilePipeline(files, view=VIEWS["resized"], seed=3, device=DEVICE, loading=loading) for _ in range(2))
    for start, stop in REQUESTS:
        whole, middle = one.batch(start, stop).pixels, (start + stop) // 2
        parts = [other.batch(start, middle).pixels.clone(), other.batch(middle, stop).pixels.clone()]
        assert torch.equal(torch.cat(parts), whole)


def test_flips_are_the_cpus(files: Files) -> None:
    """Each view is nearer to the CPU's than to its mirror image."""
    for ours, theirs in both(files, VIEWS["resized"]):
        for mine, expected in zip(images_of(ours.pixels), images_of(theirs.pixels), strict=True):
            straight, mirrored = (
                np.abs(mine.astype(np.int16) - other).mean() for other in (expected, expected[:, ::-1])
            )
            assert straight < mirrored


def test_batches_stay_what_they_are(files: Files) -> None:
    """Copies of DALI's memory: what it decodes next does not reach them."""
    source = pipeline(files, VIEWS["resized"], batch=BATCH, threads=4, prefetch=3, device=DEVICE)
    source.announce(REQUESTS)
    kept = [source.batch(*request) for request in REQUESTS]
    again = pipeline(files, VIEWS["resized"], batch=BATCH, threads=1, device=DEVICE)
    for batch, request in zip(kept, REQUESTS, strict=True):
        assert torch.equal(batch.pixels, again.batch(*request).pixels)


def taking(source: FilePipeline) -> None:
    source.announce(REQUESTS)
    for request in REQUESTS:
        batch = source.batch(*request)
        batch.pixels.float().mean()


@pytest.mark.parametrize("name", ["resized", "padded"])
def test_the_host_does_not_wait(name: str, files: Files) -> None:
    """For what torch has to do. For DALI's batch it does, which torch's check does not see."""
    source = pipeline(files, VIEWS[name], batch=BATCH, threads=4, prefetch=2, device=DEVICE)
    taking(source)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        taking(source)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    listed = Files(root=flat_folder(tmp_path, 24), names=Names.of(f"{i:02}.jpg" for i in range(24)),
                   labels_S=np.zeros(24, dtype=np.int64))  # fmt: skip
    path = listed.path(int(epoch_order(3, 0, 24)[20]))
    path.write_bytes(undecodable(picture(40, 48)))
    source = pipeline(listed, VIEWS["resized"], batch=8, prefetch=2, device=DEVICE)
    batches = [source.batch(start, start + 8) for start in range(0, 24, 8)]
    assert [[(image.name, image.reason) for image in batch.refused] for batch in batches] == [
        [], [], [(str(path), "is damaged")],
    ]  # fmt: skip
