"""Packed shards: every image comes back as it was packed, from here and from a URL; what does not fit is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fastselfie.pipelines import remote_folder, storage
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.remote_folder import RemoteFolder
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.source import AnySplit
from fastselfie.pipelines.sources import open_source
from tests.data_sources import folders_in_memory, refusal
from tests.packed_shards import change_manifest, write_packed

CLASSES = ("ant", "bee", "cat")
LABELS, VAL_LABELS = [0, 2, 1, 1, 0, 2, 2, 0], [1, 2]


def content(seed: int) -> bytes:
    """Bytes between a JPEG's ends; nothing is decoded here. No two lengths are the same."""
    return b"\xff\xd8\xff" + np.random.default_rng(seed).bytes(300 + 97 * seed) + b"\xff\xd9"


TRAIN, VAL = [content(seed) for seed in range(8)], [content(20 + seed) for seed in range(2)]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_packed(tmp_path / "packed", TRAIN, VAL, labels=LABELS, val_labels=VAL_LABELS, classes=CLASSES)


@pytest.fixture
def remote() -> Iterator[Callable[[Path], str]]:
    with folders_in_memory("shards") as copied:
        yield copied


def shards(split: AnySplit | None) -> Shards:
    assert isinstance(split, Shards)
    return split


def all_of(split: Shards) -> list[bytes]:
    return [split.read(index) for index in range(len(split))]


def test_images_labels_and_names(packed: Path) -> None:
    source = open_source(str(packed), 224)
    train, test = shards(source.train), shards(source.test)
    assert (source.name, source.classes) == ("packed", CLASSES)
    assert all_of(train) == TRAIN
    assert all_of(test) == VAL
    assert (train.labels_S.tolist(), test.labels_S.tolist()) == (LABELS, VAL_LABELS)
    assert train.labels_S.dtype == np.int64
    assert train.name(4) == "train-000001.tar/000000004.jpg"
    assert test.name(1) == "val-000000.tar/000000001.jpg"
    assert isinstance(train.entries_S, np.memmap)
    assert train.readers is None


def test_without_labels_and_test(tmp_path: Path) -> None:
    source = open_source(str(write_packed(tmp_path, TRAIN)), 224)
    assert (source.test, source.classes) == (None, ())
    assert shards(source.train).labels_S.tolist() == [0] * 8


@pytest.mark.parametrize("kept", [True, False])
def test_from_a_url(packed: Path, remote: Callable[[Path], str], kept: bool, tmp_path: Path) -> None:
    index = tmp_path / "kept" if kept else None
    url = remote(packed)
    source = open_source(url + "/", 224, index)
    train = shards(source.train)
    assert source.name == "packed"
    assert all_of(train) == TRAIN
    assert all_of(shards(source.test)) == VAL
    assert train.readers == 32
    assert isinstance(train.entries_S, np.memmap) == kept
    assert source.fingerprint() == open_source(str(packed), 224).fingerprint()
    if index is not None:
        assert len(list(index.iterdir())) == 2
        for path in index.iterdir():
            path.write_bytes(path.read_bytes()[:-1] + b"\x01")  # kept, and then damaged: fetched again
        assert all_of(shards(open_source(url, 224, index).train)) == TRAIN


@pytest.mark.parametrize("kept", [True, False])
def test_an_index_leaves_nothing_in_memory(
    packed: Path, remote: Callable[[Path], str], kept: bool, tmp_path: Path
) -> None:
    """Of the mapped file, nothing is resident after all images and labels were read."""
    spec = remote(packed) if kept else str(packed)
    train = shards(open_source(spec, 224, tmp_path / "kept").train)
    assert all_of(train) == TRAIN
    assert train.labels(range(8)).tolist() == LABELS == train.labels_S.tolist()
    assert isinstance(train.entries_S, np.memmap)
    mapping = Path("/proc/self/smaps").read_text().split(str(train.entries_S.filename))[1]
    assert int(re.search(r"Rss:\s+([0-9]+) kB", mapping)[1]) == 0  # type: ignore[index]
    assert train.entries_S["label"].tolist() == LABELS  # and now they were looked at through the mapping
    mapping = Path("/proc/self/smaps").read_text().split(str(train.entries_S.filename))[1]
    assert int(re.search(r"Rss:\s+([0-9]+) kB", mapping)[1]) > 0  # type: ignore[index]


def test_an_index_that_goes_missing_while_it_is_used(packed: Path) -> None:
    """It was opened; one that becomes shorter is an error of the storage."""
    train = shards(open_source(str(packed), 224).train)
    os.truncate(packed / "train.npy", 200)
    with pytest.raises(OSError, match="has become shorter"):
        train.labels([7])


def test_a_row_of_the_index_is_read_once(packed: Path) -> None:
    """An image's label comes with the place of its bytes. It is kept until it was asked for."""
    train = shards(open_source(str(packed), 224).train)
    assert [train.read(3), train.read(7)] == [TRAIN[3], TRAIN[7]]
    os.truncate(packed / "train.npy", 128)  # of which nothing is left but its header
    assert train.labels([7, 3]).tolist() == [LABELS[7], LABELS[3]]
    with pytest.raises(OSError, match="has become shorter"):
        train.labels([3])


def test_rows_that_are_kept_are_no_part_of_a_copy(packed: Path) -> None:
    """Threads may be changing them while it is made."""
    train = shards(open_source(str(packed), 224).train)
    before = pickle.dumps(train)
    all_of(train)
    assert len(pickle.dumps(train)) == len(before)
    assert pickle.loads(pickle.dumps(train)).labels(range(8)).tolist() == LABELS == train.labels(range(8)).tolist()


def test_a_file_url_is_a_folder_of_this_machine(packed: Path) -> None:
    assert isinstance(shards(open_source(f"file://{packed}", 224).train).entries_S, np.memmap)


@pytest.mark.parametrize("where", ["here", "there"])
def test_damage_is_found_when_it_is_read(packed: Path, remote: Callable[[Path], str], where: str) -> None:
    rows, tar = np.load(packed / "train.npy"), packed / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[rows["offset"][1] + 200] ^= 4
    tar.write_bytes(data)
    train = shards(open_source(remote(packed) if where == "there" else str(packed), 224).train)
    assert train.read(0) == TRAIN[0]
    with pytest.raises(BadImage, match=r"^does not match its checksum$"):
        train.read(1)


def test_a_shard_that_is_cut_off_afterwards(packed: Path, remote: Callable[[Path], str]) -> None:
    here, there = shards(open_source(str(packed), 224).train), shards(open_source(remote(packed), 224).train)
    row, tar = np.load(packed / "train.npy")[2], packed / "train-000000.tar"
    os.truncate(tar, int(row["offset"]) + 100)
    remote(packed)
    for train in (here, there):
        assert train.read(1) == TRAIN[1]
        with pytest.raises(BadImage, match=r"^is cut off$"):
            train.read(2)


def test_a_shard_that_goes_missing_is_an_error_of_the_storage(packed: Path, remote: Callable[[Path], str]) -> None:
    here, there = shards(open_source(str(packed), 224).train), shards(open_source(remote(packed), 224).train)
    (packed / "train-000002.tar").unlink()
    fsspec.filesystem("memory").rm(f"/shards/{packed.name}/train-000002.tar")
    for train in (here, there):
        with pytest.raises(FileNotFoundError) as caught:
            train.read(7)
        assert caught.value.strerror


def _read_in_child(split: Shards, results: multiprocessing.SimpleQueue[bool]) -> None:
    results.put(all_of(split) == TRAIN)


@pytest.mark.parametrize("where", ["here", "there"])
def test_threads_and_copies(packed: Path, remote: Callable[[Path], str], where: str) -> None:
    train = shards(open_source(remote(packed) if where == "there" else str(packed), 224).train)
    order = np.random.default_rng(0).integers(0, len(TRAIN), 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(train.read, order)) == [TRAIN[index] for index in order]
    copy = pickle.loads(pickle.dumps(train))
    assert all_of(copy) == TRAIN
    assert (copy.name(5), copy.labels_S.tolist()) == (train.name(5), LABELS)


@pytest.mark.parametrize("where", ["here", "there"])
def test_after_a_fork(packed: Path, remote: Callable[[Path], str], where: str) -> None:
    train = shards(open_source(remote(packed) if where == "there" else str(packed), 224).train)
    assert train.read(0) == TRAIN[0]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(train, results))
    with train.storage._lock if isinstance(train.storage, storage.LocalFolder) else nullcontext():
        child.start()  # as if another thread were opening a shard just now
    child.join(20)
    child.kill()
    assert child.exitcode == 0
    assert results.get()


def open_tars() -> int:
    """Descriptors of this process."""
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).endswith(".tar") for link in links if os.path.lexists(link))


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while threads read from more of them than may be open."""
    monkeypatch.setattr(storage, "_MOST_OPEN", 2)
    train = shards(open_source(str(write_packed(tmp_path, TRAIN, a_shard=1)), 224).train)
    order = np.random.default_rng(1).integers(0, len(TRAIN), 2000).tolist()
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(train.read, order)) == [TRAIN[index] for index in order]
    assert open_tars() == 2
    del train
    assert open_tars() == 0


def test_the_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    prints = [open_source(str(write_packed(tmp_path / "a", TRAIN[:count])), 224).fingerprint() for count in (3, 4)]
    again = open_source(str(write_packed(tmp_path / "b", TRAIN[:4])), 224).fingerprint()
    assert prints[0] != prints[1]
    assert prints[1] == again


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (lambda folder: (folder / "train-000001.tar").unlink(), "train-000001.tar is missing"),
    "a short shard": (lambda folder: cut(folder / "val-000000.tar"), "val-000000.tar has "),
    "a missing index": (lambda folder: (folder / "val.npy").unlink(), "val.npy is missing"),
    "a short index": (lambda folder: cut(folder / "train.npy"), "train.npy is damaged"),
    "another index": (lambda folder: (folder / "train.npy").rename(folder / "val.npy"), "train.npy is missing"),
    "a cut manifest": (lambda folder: cut(folder / "dataset.json"), "dataset.json is damaged"),
    "a list as manifest": (lambda folder: (folder / "dataset.json").write_text("[1]"), "dataset.json is damaged"),
    "no UTF-8": (lambda folder: (folder / "dataset.json").write_bytes(b"\xff\xfe"), "dataset.json is damaged"),
    "depth": (lambda folder: (folder / "dataset.json").write_text("[" * 100_000), "dataset.json is damaged"),
    "no whole number": (
        lambda folder: change_manifest(folder, splits__train__images=float("inf")),
        "dataset.json is damaged",
    ),
    "no name of a file": (
        lambda folder: change_manifest(folder, splits__val__index={"name": "x\0.npy", "crc32": 1}),
        "dataset.json is damaged",
    ),
    "a newer format": (lambda folder: change_manifest(folder, format=2), "is of format 2, and this FastSelfie reads 1"),
    "an odd format": (lambda folder: change_manifest(folder, format=0), "dataset.json is damaged"),
    "no splits": (lambda folder: change_manifest(folder, splits={}), "dataset.json is damaged"),
    "another count": (lambda folder: change_manifest(folder, splits__train__images=9), "train.npy does not fit"),
    "too few classes": (lambda folder: change_manifest(folder, classes=["ant", "bee"]), "train.npy does not fit"),
    "a way out": (
        lambda folder: change_manifest(folder, splits__val__index={"name": "../x.npy", "crc32": 1}),
        "dataset.json is damaged",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("where", ["here", "there"])
def test_refusals(case: str, where: str, packed: Path, remote: Callable[[Path], str], tmp_path: Path) -> None:
    change, said = REFUSALS[case]
    change(packed)
    spec = remote(packed) if where == "there" else str(packed)
    message = refusal(spec, tmp_path / "kept")
    assert said in message
    assert spec in message


def test_an_index_of_another_kind(packed: Path) -> None:
    header = b"\x93NUMPY\1\0\x10\0{'shape': (3,\n  "  # a bracket is never closed
    for wrong, said in (
        (np.zeros(8, dtype=np.int64), "no index of format 1"), (b"PK" * 40, "is no index"), (header, "is no index"),
        ({"rows": np.zeros(8)}, "no index of format 1"),
    ):  # fmt: skip
        if isinstance(wrong, bytes):
            (packed / "train.npy").write_bytes(wrong)
        elif isinstance(wrong, dict):
            with (packed / "train.npy").open("wb") as file:
                np.savez(file, rows=wrong["rows"])
        else:
            np.save(packed / "train.npy", wrong)
        checksum = zlib.crc32((packed / "train.npy").read_bytes())
        change_manifest(packed, splits__train__index={"name": "train.npy", "crc32": checksum})
        assert said in refusal(packed)


def test_urls_of_nothing(remote: Callable[[Path], str], tmp_path: Path) -> None:
    assert "memory://nowhere does not exist" in refusal("memory://nowhere")
    assert "Protocol not known: carrier" in refusal("carrier://pigeon")
    (tmp_path / "notes.txt").touch()
    assert "neither packed shards nor tar files" in refusal(remote(tmp_path))


def test_a_manifest_of_something_else(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "train/dog/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(TRAIN[0])
    (tmp_path / "dataset.json").write_text('{"title": "cats and dogs"}')
    assert open_source(str(tmp_path), 224).classes == ("cat", "dog")


def test_the_folder_that_one_is_in(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed)
    assert open_source(".", 224).name == "packed"


class Unreliable(MemoryFileSystem):  # type: ignore[misc]
    """A storage whose client has exceptions of its own, and a server that knows no parts of files."""

    protocol = "unreliable"
    fails = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("unreliable://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if self.fails:
            raise RuntimeError("the token has\nexpired")
        return bytes(super().cat_file(path))


def test_storage_that_fails(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr(Unreliable, "store", {})
    monkeypatch.setattr(Unreliable, "pseudo_dirs", [""])
    for path in packed.iterdir():
        fsspec.filesystem("unreliable").pipe_file(f"/p/{path.name}", path.read_bytes())
    monkeypatch.setattr(remote_folder, "_PAUSES_S", (0.0, 0.0))
    assert "sends whole files where parts are asked for" in refusal("unreliable://p")
    monkeypatch.setattr(Unreliable, "fails", True)
    with pytest.raises(OSError, match="RuntimeError: the token has"):
        RemoteFolder("unreliable://p").read("train-000000.tar", 0, 1)
    assert "cannot be read (RuntimeError: the token has expired)" in refusal("unreliable://p")


class Versioned(Unreliable):
    """A storage whose `cat_file` takes a version before the range, as that of s3fs does."""

    protocol = "versioned"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("versioned://", "unreliable://")))

    def cat_file(  # type: ignore[override]
        self, path: str, version_id: str | None = None, start: int | None = None, end: int | None = None
    ) -> bytes:
        assert version_id is None
        return bytes(MemoryFileSystem.cat_file(self, path, start, end))


def test_storage_that_takes_a_version_before_the_range(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("versioned", Versioned, clobber=True)
    monkeypatch.setattr(Versioned, "store", {}, raising=False)
    monkeypatch.setattr(Versioned, "pseudo_dirs", [""], raising=False)
    for path in packed.iterdir():
        fsspec.filesystem("versioned").pipe_file(f"/p/{path.name}", path.read_bytes())
    assert all_of(shards(open_source("versioned://p", 224).train)) == TRAIN


def test_the_index_folder_must_be_writable(packed: Path, remote: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(remote(packed), tmp_path / "file")
    assert f"{tmp_path / 'file'}: the index of the images cannot be kept there" in message


def test_the_manifest_is_what_the_format_says(packed: Path) -> None:
    """So that these tests speak of the documented format."""
    assert json.loads((packed / "dataset.json").read_text())["splits"]["train"]["shards"][1] == {
        "name": "train-000001.tar", "bytes": 10240, "images": 3,
    }  # fmt: skip
