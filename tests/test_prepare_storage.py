"""`fastselfie.pipelines.prepare` by itself: storage that fails, and an end before any of its files appears."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines import shrinking_pool
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.prepare import open_encoded, prepare
from fastselfie.pipelines.prepare_result import Prepared
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.source import EncodedImages, Source
from tests.command import contents
from tests.packing import members
from tests.photographs import jpeg, picture, write

SMALL = Shrinking(size=48, side="shorter", quality=95)


class Storage(EncodedImages):
    """Photographs in memory; ``failures`` says how often reading an image fails before it works."""

    def __init__(self, failures: dict[int, int], count: int = 12, damaged: int = -1) -> None:
        self.labels_S = np.zeros(count, dtype=np.int64)
        self.failures, self.damaged, self.asked = failures, damaged, [0] * count

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> bytes:
        self.asked[index] += 1
        if self.asked[index] <= self.failures.get(index, 0):
            raise OSError(5, "Input/output error")
        if index == self.damaged:
            raise BadImage("does not match its checksum")
        return jpeg(picture(20, 20 + index))

    def identity(self) -> Iterable[bytes]:
        return [b"storage"]


def pack(
    images: EncodedImages, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None, *,
    test: EncodedImages | None = None,
) -> Prepared:  # fmt: skip
    source = Source(name="storage", train=images, test=test, classes=())
    return prepare(source, folder, shrinking=SMALL, shard_bytes=1 << 20, workers=1, progress=progress)


def test_reading_is_tried_four_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking_pool, "_PAUSES_S", (0.0, 0.0, 0.0))
    storage, seen = Storage({2: 3, 5: 4, 6: 99}, damaged=8), list[tuple[int, int]]()
    prepared = pack(storage, tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(13)]
    assert [storage.asked[index] for index in (0, 2, 5, 6)] == [1, 4, 4, 4]
    assert prepared.images == {"train": 9}
    assert (tmp_path / "out" / "rejected.csv").read_text().splitlines() == [
        "name,reason", "image 5,cannot be read (Input/output error)", "image 6,cannot be read (Input/output error)",
        "image 8,does not match its checksum",
    ]  # fmt: skip
    assert prepared.kinds_rejected() == {"cannot be read": 2, "does not match its checksum": 1}
    found = members(tmp_path / "out" / "train-000000.tar")
    assert list(found) == [f"{key:09d}.jpg" for key in range(9)]  # and no labels
    assert found["000000005.jpg"] == jpeg(picture(20, 27))


class RemoteStorage(Storage):
    """One with pauses of its own, as behind a URL."""

    readers = 4
    pauses_s = (0.0,) * 6


def test_remote_storage_is_tried_as_often_as_it_says(tmp_path: Path) -> None:
    """A server that starts anew costs no image: what is left out of shards is left out for good."""
    storage = RemoteStorage({2: 6, 3: 6, 9: 7})
    assert pack(storage, tmp_path / "out").images == {"train": 11}
    assert [storage.asked[index] for index in (0, 2, 3, 9)] == [1, 7, 7, 7]


def test_storage_that_is_gone_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking_pool, "_PAUSES_S", (0.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"image 41: cannot be read \(Input/output error\), and so it went with 32"):
        pack(Storage(dict.fromkeys(range(10, 60), 99), count=60), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    prepared = pack(Storage({}, count=60), tmp_path / "out")
    assert (prepared.images, prepared.rejected) == ({"train": 60}, ())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | None]:
    folder = tmp_path_factory.mktemp("undisturbed")
    pack(Storage({}), folder, test=Storage({}, count=3))
    return contents(folder)


@pytest.mark.parametrize("number", range(1, 12))
def test_ended_before_any_file_appears(
    number: int, undisturbed: dict[str, bytes | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eleven: the plan, shard, rows and record of two shards, two indices, the list of rejected, the manifest."""
    with monkeypatch.context() as patch:
        replaced, replace = list[Path](), os.replace

        def ending(partial: Path, whole: Path) -> None:
            replaced.append(whole)
            if len(replaced) == number:
                raise KeyboardInterrupt
            replace(partial, whole)

        patch.setattr(os, "replace", ending)
        with pytest.raises(KeyboardInterrupt):
            pack(Storage({}), tmp_path / "out", test=Storage({}, count=3))
    assert not (tmp_path / "out" / "dataset.json").exists()
    pack(Storage({}), tmp_path / "out", test=Storage({}, count=3))
    assert contents(tmp_path / "out") == undisturbed


def test_an_open_lock_does_not_stay_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a file that is removed while it is open lies there under another name, and its folder cannot go."""
    remove = os.unlink

    def renaming(name: str, *, dir_fd: int | None = None) -> None:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=dir_fd)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.rename(name, ".nfs0001", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        else:
            remove(name, dir_fd=dir_fd)
        finally:
            os.close(descriptor)

    monkeypatch.setattr(os, "unlink", renaming)
    assert pack(Storage({}), tmp_path / "out").images == {"train": 12}
    assert not (tmp_path / "out" / "unfinished").exists()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path / "source", [("a.jpg", jpeg(picture(20, 20)))])
    strange = os.fsencode(tmp_path / "source") + b"/\xff,\n.jpg"
    Path(os.fsdecode(strange)).write_bytes(b"")
    for before in (False, True):
        images = open_encoded(str(tmp_path / "source")).train
        assert isinstance(images, EncodedImages)
        prepared = pack(images, tmp_path / "out")
        assert (prepared.before, prepared.rejected) == (before, ("is empty",))
        assert (tmp_path / "out" / "rejected.csv").read_bytes() == b'name,reason\n"' + strange + b'",is empty\n'
    Path(os.fsdecode(strange)).unlink()  # some tools that tidy up after us cannot
