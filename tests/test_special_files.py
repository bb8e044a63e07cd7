"""What has the name of an image or a shard and is none: a pipe is not waited for, a huge file takes no memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.numbered_files import parts
from fastselfie.pipelines.source import Files
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.storage import LocalFolder
from tests.photographs import jpeg, noise, write


@pytest.fixture(autouse=True)
def _impatient() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def folder_of(names: list[str], tmp_path: Path) -> Path:
    """One file that is a file, and ``names``, which are pipes."""
    write(tmp_path, [("0.jpg", jpeg(noise(32, 32)))])
    for name in names:
        os.mkfifo(tmp_path / name)
    return tmp_path


def test_images(tmp_path: Path) -> None:
    folder = folder_of(["1.jpg"], tmp_path)
    images = open_source(str(folder), 32).train
    assert isinstance(images, Files)
    assert images.read(0) == (folder / "0.jpg").read_bytes()
    with pytest.raises(BadImage, match="is no regular file"):
        images.read(1)


def test_a_file_of_a_terabyte(tmp_path: Path) -> None:
    """A disk image under a picture's name; this one has holes alone."""
    files = write(tmp_path, [("0.jpg", b"")])
    os.truncate(tmp_path / "0.jpg", 1 << 40)
    with pytest.raises(BadImage, match=r"^has 1099511627776 bytes, more than the 1073741824 that are read$"):
        files.read(0)


def test_shards(tmp_path: Path) -> None:
    storage = LocalFolder(folder_of(["train-0.tar"], tmp_path))
    assert storage.state("0.jpg")[0] > 0
    with pytest.raises(OSError, match=r"train-0.tar is no regular file"):
        storage.state("train-0.tar")


def test_parts(tmp_path: Path) -> None:
    folder = folder_of(["train-00000-of-00001"], tmp_path)
    with pytest.raises(UserError, match="is no regular file"):
        parts([folder], "")
