"""The downsampled-ImageNet reader on hand-made batches of the published layout."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.downsampled_imagenet import is_imagenet32, read_imagenet32


def write(folder: Path, name: str, seed: int, labels: list[int], width: int = 3072) -> NDArray[np.uint8]:
    rows = np.random.default_rng(seed).integers(0, 256, (len(labels), width), dtype=np.uint8)
    contents = {"data": rows, "labels": labels, "mean": rows.mean(axis=0)}
    (folder / name).write_bytes(pickle.dumps(contents, 3))
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(1, 11):  # ten, because as texts 10 sorts before 2
        write(tmp_path, f"train_data_batch_{number}", number, [number, 1000])
    write(tmp_path, "val_data", 99, [1, 500, 1000])
    return tmp_path


def test_order_pixels_and_labels(folder: Path) -> None:
    assert is_imagenet32(folder)
    source = read_imagenet32(folder)
    assert source.train.labels_S.tolist() == [label for number in range(10) for label in (number, 999)]
    assert source.test.labels_S.tolist() == [0, 499, 999]
    assert source.classes == tuple(map(str, range(1000)))
    rows = write(folder, "train_data_batch_10", 10, [10, 1000])
    images = source.train.images_SHW3[18:20]
    assert source.train.images_SHW3.flags.c_contiguous
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel].reshape(2, 1024), rows[:, 1024 * channel :][:, :1024])


def test_a_part_will_do(folder: Path) -> None:
    for number in range(3, 11):
        (folder / f"train_data_batch_{number}").unlink()
    assert read_imagenet32(folder).train.labels_S.tolist() == [0, 999, 1, 999]


@pytest.mark.parametrize("missing", ["train_data_batch_4", "train_data_batch_1", "val_data"])
def test_missing_batch_is_named(missing: str, folder: Path) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"has no {missing}:"):
        read_imagenet32(folder)


def test_no_training_batch(tmp_path: Path) -> None:
    write(tmp_path, "val_data", 0, [1])
    assert is_imagenet32(tmp_path)
    with pytest.raises(UserError, match="has no train_data_batch_1:"):
        read_imagenet32(tmp_path)


@pytest.mark.parametrize(
    ("labels", "width", "message"),
    [([0], 3072, "from 1 to 1000"), ([1001], 3072, "from 1 to 1000"), ([1], 12288, "32x32 pixels; give the batches")],
)
def test_other_data_sets_are_refused(labels: list[int], width: int, message: str, folder: Path) -> None:
    write(folder, "train_data_batch_2", 0, labels, width)
    with pytest.raises(UserError, match=message) as caught:
        read_imagenet32(folder)
    assert "train_data_batch_2" in str(caught.value)


def test_truncated_batch(folder: Path) -> None:
    whole = (folder / "val_data").read_bytes()
    (folder / "val_data").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="val_data is damaged"):
        read_imagenet32(folder)


def test_what_is_not_imagenet32(tmp_path: Path) -> None:
    (tmp_path / "train_data_batch_01").touch()
    (tmp_path / "train_data_batch_1.zip").touch()
    assert not is_imagenet32(tmp_path)
    assert not is_imagenet32(tmp_path / "train_data_batch_1.zip")
    assert not is_imagenet32(tmp_path / "nowhere")
