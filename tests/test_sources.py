"""What --data may name is opened; every mistake ends in one line that begins with --data and says what to do."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines import sources
from fastselfie.pipelines.source import ResidentSource
from fastselfie.pipelines.sources import open_source


def write_batches(folder: Path, names: list[str], label: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        contents = {"data": np.zeros((1, 3072), np.uint8), "labels": [label]}
        (folder / name).write_bytes(pickle.dumps(contents, 2))
    return folder


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return write_batches(tmp_path / "cifar" / "cifar-10-batches-py", names, 3)


def refusal(spec: str | None, size: int = 32) -> str:
    with pytest.raises(UserError) as caught:
        open_source(spec, size)
    message = str(caught.value)
    assert message.startswith("--data")
    assert "\n" not in message
    return message


def test_paths(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "cifar" / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar, arcname=cifar.name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in (str(cifar), str(cifar.parent), str(archive), "~/cifar"):
        assert open_source(spec, 32).name == "cifar10"
    imagenet = write_batches(tmp_path / "imagenet", ["train_data_batch_1", "val_data"], 1000)
    assert open_source(str(imagenet), 32).name == "imagenet32"


def test_the_default_is_the_downloaded_archive(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "cifar10_archive", lambda: cifar)
    assert open_source(None, 32).name == "cifar10"


def test_the_default_is_not_downloaded_for_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sources, "cifar10_archive")
    assert "recipe wants 224x224" in refusal(None, 224)


def test_synthetic() -> None:
    for spec, train, test in (("synthetic:100", 100, 25), ("synthetic:12", 12, 10), ("synthetic", 8192, 2048)):
        source = open_source(spec, 8)
        assert isinstance(source, ResidentSource)
        assert source.train.images_SHW3.shape == (train, 8, 8, 3)
        assert len(source.test) == test


@pytest.mark.parametrize("count", ["", "0", "9", "-5", "1e3", "12.5", "many", "1000001", "9" * 5000, "²"])
def test_synthetic_counts(count: str) -> None:
    assert "give a whole number from 10 to 1000000" in refusal(f"synthetic:{count}")


def test_paths_that_hold_nothing_known(tmp_path: Path) -> None:
    understood = "cifar-10-batches-py folder or its tar.gz"
    for missing in (str(tmp_path / "nowhere"), "", "synthetics", "cifar10"):
        message = refusal(missing)
        assert "does not exist" in message
        assert understood in message
    assert "no such user" in refusal("~nobody-of-that-name/data")
    assert "is an empty folder" in refusal(str(tmp_path))
    (tmp_path / "notes.md").touch()
    for unknown in (tmp_path, tmp_path / "notes.md"):
        message = refusal(str(unknown))
        assert "no data set known here" in message
        assert understood in message


def test_wrong_size_is_said_before_reading(cifar: Path) -> None:
    (cifar / "data_batch_1").write_bytes(b"damaged")
    message = refusal(str(cifar), 224)
    assert "recipe wants 224x224" in message
    assert str(cifar) in message


def test_damage_is_passed_on(cifar: Path) -> None:
    (cifar / "data_batch_1").write_bytes(b"damaged")
    assert f"{cifar / 'data_batch_1'} is damaged" in refusal(str(cifar))


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
def test_impossible_names(name: str) -> None:
    refusal(name)
