"""WebDataset tar files: what `webdataset` and `tarfile` write is read in any order; what cannot be used is refused."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.source import AnySplit, Source
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.storage import Storage
from fastselfie.pipelines.tar_samples import Samples, read_samples
from tests.data_sources import folders_in_memory
from tests.packed_shards import add
from tests.tar_shards import content, labelled, webdataset, with_json, write


def split_of(split: AnySplit | None) -> Shards:
    assert isinstance(split, Shards)
    return split


def contents(split: AnySplit | None) -> list[tuple[bytes, int]]:
    opened = split_of(split)
    return [(opened.read(index), int(opened.labels_S[index])) for index in range(len(opened))]


def as_the_library_reads(shards: Sequence[Path]) -> list[tuple[bytes, int]]:
    found = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False, empty_check=False)
    return [(sample["jpg"], int(sample["cls"])) for sample in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "imagenet"
    write(place / "imagenet1k-train-0000.tar", labelled(0, [3, 0, 2]))
    write(place / "imagenet1k-train-0001.tar", labelled(10, [1, 1]))
    write(place / "imagenet1k-validation-00.tar", labelled(20, [2, 0]))
    return place


def expected(folder: Path, part: str) -> list[tuple[bytes, int]]:
    return as_the_library_reads(sorted(folder.glob(f"*{part}*.tar")))


def check(source: Source, folder: Path) -> None:
    assert source.classes == ("0", "1", "2", "3")
    assert contents(source.train) == expected(folder, "train")
    assert contents(source.test) == expected(folder, "validation")


@pytest.mark.parametrize("kept", [True, False])
def test_what_the_library_wrote(folder: Path, kept: bool, tmp_path: Path) -> None:
    index = tmp_path / "kept" if kept else None
    source = open_source(str(folder), 224, index)
    check(source, folder)
    assert len(contents(source.train)) == 5
    train = split_of(source.train)
    assert train.name(4) == "imagenet1k-train-0001.tar/n00011.jpg"
    assert isinstance(train.entries_S, np.memmap) == kept
    assert source.name == "imagenet"
    copy = pickle.loads(pickle.dumps(train))
    assert contents(copy) == contents(train)
    assert copy.name(4) == train.name(4)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were walked through."""
    seen: list[str] = []

    def walk(storage: Storage, shard: str) -> Samples:
        seen.append(shard)
        return read_samples(storage, shard)

    monkeypatch.setattr("fastselfie.pipelines.webdataset.read_samples", walk)
    return seen


def test_shards_are_walked_once(folder: Path, tmp_path: Path, walks: list[str]) -> None:
    first = open_source(str(folder), 224, tmp_path / "kept").fingerprint()
    assert len(walks) == 3
    again = open_source(str(folder), 224, tmp_path / "kept")
    assert len(walks) == 3
    check(again, folder)
    assert again.fingerprint() == first


def exchange(folder: Path) -> None:
    """What was tested on is trained on too."""
    os.replace(folder / "imagenet1k-validation-00.tar", folder / "x-train-1.tar")
    write(folder / "imagenet1k-validation-00.tar", labelled(50, [3]))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another content": lambda folder: write(folder / "imagenet1k-train-0001.tar", labelled(30, [3, 3, 3])),
    "of the same size": lambda folder: write(folder / "imagenet1k-train-0001.tar", labelled(10, [1, 2])),
    "one more": lambda folder: write(folder / "imagenet1k-train-0002.tar", labelled(40, [0])),
    "one less": lambda folder: (folder / "imagenet1k-train-0001.tar").unlink(),
    "another name": lambda folder: (folder / "imagenet1k-train-0001.tar").rename(folder / "imagenet1k-train-9.tar"),
    "exchanged": exchange,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_shards_are_walked_again(change: str, folder: Path, tmp_path: Path) -> None:
    before = open_source(str(folder), 224, tmp_path / "kept").fingerprint()
    CHANGES[change](folder)
    source = open_source(str(folder), 224, tmp_path / "kept")
    check(source, folder)
    assert source.fingerprint() != before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_index_is_made_anew(damage: str, folder: Path, tmp_path: Path, walks: list[str]) -> None:
    open_source(str(folder), 224, tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-1], "flipped": bytes(flipped), "empty": b"", "foreign": b"x" * 5000}[damage])
    check(open_source(str(folder), 224, tmp_path / "kept"), folder)
    assert len(walks) == 6
    check(open_source(str(folder), 224, tmp_path / "kept"), folder)
    assert len(walks) == 6
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.fixture
def remote() -> Iterator[Callable[[Path], str]]:
    with folders_in_memory("tars") as copied:
        yield copied


def test_from_a_url(folder: Path, remote: Callable[[Path], str], tmp_path: Path, walks: list[str]) -> None:
    url = remote(folder)
    for _ in range(2):
        source = open_source(url, 224, tmp_path / "kept")
        check(source, folder)
    assert len(walks) == 3
    assert source.fingerprint() == open_source(str(folder), 224).fingerprint()
    write(folder / "imagenet1k-train-0001.tar", labelled(10, [1, 2]))
    check(open_source(remote(folder), 224, tmp_path / "kept"), folder)
    check(open_source(remote(folder), 224), folder)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_tar(format: int, tmp_path: Path) -> None:
    """Long and foreign names have members of their own in GNU's and pax's format; folders and links count nowhere."""
    long = "a" * 90 + "/" + ("b" * 90 if format == tarfile.USTAR_FORMAT else "ä" * 250)
    keys = ["plain", "./dotted", long, "with space", "UPPER"]
    with tarfile.open(tmp_path / "shard.tar", "w", format=format) as tar:
        folder = tarfile.TarInfo("d.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add(tar, "__about__.json", b"{}")
        add(tar, "._plain.jpg", b"a Mac's")
        for number, key in enumerate(keys):
            add(tar, f"{key}.cls", f" {number}\n".encode())
            add(tar, f"{key}.{'JPEG' if key.isupper() else 'png' if number == 1 else 'jpg'}", content(number))
            add(tar, f"{key}.seg.png", b"a mask")
            add(tar, f"{key}.txt", b"a caption")
    source = open_source(str(tmp_path), 224)
    assert contents(source.train) == [(content(number), number) for number in range(5)]
    train = split_of(source.train)
    assert [train.name(index) for index in (0, 2, 4)] == ["shard.tar/plain.jpg", f"shard.tar/{long}.jpg",
                                                         "shard.tar/UPPER.JPEG"]  # fmt: skip
    assert source.remark == ""


@pytest.mark.parametrize(
    ("values", "classes", "labels"),
    [
        ([{"label": 2, "width": 7}, {"label": 0}], ("0", "1", "2"), [2, 0]),
        ([{"label": "fox"}, {"label": "ant"}, {"label": "fox"}], ("ant", "fox"), [1, 0, 1]),
        ([{"caption": "a fox"}, {"label": None}, [3]], (), [0, 0, 0]),
    ],
)
def test_labels_in_json(values: list[Any], classes: tuple[str, ...], labels: list[int], tmp_path: Path) -> None:
    write(tmp_path / "a.tar", with_json(values))
    source = open_source(str(tmp_path), 224)
    assert source.classes == classes
    assert split_of(source.train).labels_S.tolist() == labels


def test_cls_goes_before_json(tmp_path: Path) -> None:
    sample = {"__key__": "a", "jpg": content(1), "cls": b"1", "json": b'{"label": 5}'}
    write(tmp_path / "a.tar", [sample])
    assert split_of(open_source(str(tmp_path), 224).train).labels_S.tolist() == [1]


def test_a_part_without_labels_takes_them_from_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", labelled(0, [4, 2]))
    write(tmp_path / "val-0.tar", [{"__key__": "a", "jpg": content(1)}])
    source = open_source(str(tmp_path), 224)
    assert source.classes == ()
    assert split_of(source.train).labels_S.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (("00000.tar", "00001.tar"), {"00000", "00001"}, None),
        (("a-train-1.tar", "a_val_1.tar"), {"a-train-1"}, {"a_val_1"}),
        (("train2017-1.tar", "TEST-1.tar"), {"train2017-1"}, {"TEST-1"}),
        (("train.tar", "validation.tar", "test.tar"), {"train"}, {"validation"}),
        (("training-0.tar", "valid-0.tar", "valid-1.tar"), {"training-0"}, {"valid-0", "valid-1"}),
        (("constraint.tar", "latest.tar", "interval.tar"), {"constraint", "latest", "interval"}, None),
    ],
)
def test_splits_by_name(names: Sequence[str], train: set[str], test: set[str] | None, tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name, labelled(0, [0]))
    source = open_source(str(tmp_path), 224)

    def of(split: AnySplit | None) -> set[str] | None:
        return None if split is None else {name.removesuffix(".tar") for name in split_of(split).shards}

    assert (of(source.train), of(source.test)) == (train, test)


def test_images_of_other_formats_are_told_of(tmp_path: Path) -> None:
    others = [{"__key__": "o1", "webp": b"a", "cls": b"1"}, {"__key__": "o2", "gif": b"b", "cls": b"1"}]
    write(tmp_path / "a.tar", [*labelled(0, [0, 1]), *others])
    for _ in range(2):
        source = open_source(str(tmp_path), 224, tmp_path / "kept")
        assert len(split_of(source.train)) == 2
        assert source.remark == "2 files of other formats (.gif, .webp) passed over; fastselfie prepare converts them"


def test_tars_beside_what_was_unpacked_from_them(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", labelled(0, [0]))
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(content(1))
    assert open_source(str(tmp_path), 224).classes == ("cat",)


def test_a_zero_byte_in_a_name_moves_no_other_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a\0b.jpg", "c.jpg"):
            member = tarfile.TarInfo("x.jpg")
            member.pax_headers = {"path": name}
            tar.addfile(member)
    train = open_source(str(tmp_path), 32).train
    assert isinstance(train, Shards)
    assert [train.name(index) for index in range(2)] == ["a.tar/a\N{REPLACEMENT CHARACTER}b.jpg", "a.tar/c.jpg"]
