"""The listing of class folders that is kept: the same as a fresh one whatever happened to the tree in between."""

from __future__ import annotations

import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines import folder_listing
from fastselfie.pipelines.index_file import Index, keep_bytes, read_index, write_index
from fastselfie.pipelines.names import Names
from fastselfie.pipelines.source import AnySplit, Files, Source
from fastselfie.pipelines.sources import open_source
from tests.test_image_folder import names_of
from tests.warm_start import Forked

TREE = (
    "train/cat/1.jpg", "train/cat/2.jpg", "train/cat/deep/er/3.png", "train/dog/1.jpg", "train/dog/x.webp",
    "train/Zebra/z.jpeg", "val/cat/9.jpg", "val/dog/8.jpg",
)  # fmt: skip
LONG_AGO = time.time() - 1000


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def settle(root: Path) -> None:
    """Every folder was modified long ago, all at one time, as a copy leaves them."""
    for place, _, _ in os.walk(root, topdown=False):
        os.utime(place, (LONG_AGO, LONG_AGO))


@pytest.fixture(autouse=True)
def small_trees_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_listing, "_WORTHWHILE", 1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make(tmp_path / "photos", *TREE)
    settle(root)
    return root


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed, not only asked whether they changed."""
    seen: list[str] = []
    scan = folder_listing._listed

    def listed(path: Path, every: bool) -> folder_listing._Known:
        seen.append(str(path))
        return scan(path, every)

    monkeypatch.setattr(folder_listing, "_listed", listed)
    return seen


def described(source: Source) -> tuple[object, ...]:
    def split(part: AnySplit | None) -> object:
        if part is None:
            return None
        assert isinstance(part, Files)
        return part.root, names_of(part), part.labels_S.tolist()

    return source.name, source.classes, split(source.train), split(source.test), source.remark


def test_an_unchanged_tree_is_not_listed_again(tree: Path, tmp_path: Path, scans: list[str]) -> None:
    first = open_source(str(tree), 224, tmp_path / "kept")
    assert len(scans) == 9  # all folders but the root, of which only train and val matter
    again = open_source(str(tree), 224, tmp_path / "kept")
    assert len(scans) == 9
    assert described(again) == described(first) == described(open_source(str(tree), 224))
    assert again.fingerprint() == first.fingerprint()
    assert names_of(again.train) == ("Zebra/z.jpeg", "cat/1.jpg", "cat/2.jpg", "cat/deep/er/3.png", "dog/1.jpg")


def move(root: Path, old: str, new: str) -> None:
    (root / old).rename(root / new)


def exchange(root: Path) -> None:
    """Two folders change names and keep their times."""
    for old, new in (("train/cat", "train/x"), ("train/dog", "train/cat"), ("train/x", "train/dog")):
        move(root, old, new)


def rename_class(root: Path) -> None:
    """In the part to train on, which is then the only one."""
    move(root, "train/dog", "train/hog")
    shutil.rmtree(root / "val")


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "a file more": (lambda root: make(root, "train/dog/2.jpg"), 1),
    "a file less": (lambda root: (root / "train/cat/2.jpg").unlink(), 1),
    "another name": (lambda root: move(root, "train/cat/2.jpg", "train/cat/0.jpg"), 1),
    "another class": (lambda root: move(root, "train/cat/2.jpg", "train/dog/2.jpg"), 2),
    "deep below": (lambda root: make(root, "train/cat/deep/er/4.jpg"), 1),
    "a folder more": (lambda root: make(root, "train/ant/1.jpg", "train/ant/in/2.jpg"), 3),
    "a folder less": (lambda root: shutil.rmtree(root / "train/Zebra"), 1),
    "another folder's name": (rename_class, 2),
    "exchanged": (exchange, 5),
    "of another format": (lambda root: make(root, "train/cat/y.GIF"), 1),
    "test instead of val": (lambda root: move(root, "val", "test"), 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed_and_little_is_listed(change: str, tree: Path, tmp_path: Path, scans: list[str]) -> None:
    before = open_source(str(tree), 224, tmp_path / "kept")
    happen, listed = CHANGES[change]
    happen(tree)
    scans.clear()
    after = open_source(str(tree), 224, tmp_path / "kept")
    assert len(scans) == listed
    assert described(after) == described(open_source(str(tree), 224))
    if change != "exchanged" and change != "test instead of val":
        assert described(after) != described(before)


def test_changes_in_the_same_tick_are_noticed(tree: Path, tmp_path: Path) -> None:
    """A folder that was listed just after it was modified may change again and keep its time."""
    now = time.time()
    make(tree, "train/dog/2.jpg")
    os.utime(tree / "train/dog", (now, now))
    open_source(str(tree), 224, tmp_path / "kept")
    make(tree, "train/dog/3.jpg")
    os.utime(tree / "train/dog", (now, now))
    source = open_source(str(tree), 224, tmp_path / "kept")
    assert "dog/3.jpg" in names_of(source.train)


def test_contents_do_not_count(tree: Path, tmp_path: Path, scans: list[str]) -> None:
    open_source(str(tree), 224, tmp_path / "kept")
    scans.clear()
    (tree / "train/cat/1.jpg").write_bytes(b"other")
    open_source(str(tree), 224, tmp_path / "kept")
    assert scans == []


def test_each_tree_has_its_own(tree: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", "a.jpg", "b.jpg")
    settle(other)
    for _ in range(2):
        for root in (tree, other):
            assert described(open_source(str(root), 224, tmp_path / "kept")) == described(open_source(str(root), 224))
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "newer"])
def test_a_damaged_index_is_made_anew(damage: str, tree: Path, tmp_path: Path, scans: list[str]) -> None:
    expected = described(open_source(str(tree), 224, tmp_path / "kept"))
    (path,) = (tmp_path / "kept").iterdir()
    data = path.read_bytes()
    if damage == "newer":
        index = read_index(path)
        assert index is not None
        write_index(path, Index(header={**index.header, "format": 99}, arrays=dict(index.arrays)))
    else:
        flipped = bytearray(data)
        flipped[60] ^= 1
        path.write_bytes({"cut": data[:-1], "flipped": bytes(flipped), "empty": b"", "foreign": b"x" * 5000}[damage])
    scans.clear()
    assert described(open_source(str(tree), 224, tmp_path / "kept")) == expected
    assert len(scans) == 9
    assert described(open_source(str(tree), 224, tmp_path / "kept")) == expected
    assert len(scans) == 9


_OPEN = """
import sys
from pathlib import Path
from fastselfie.pipelines import folder_listing
from fastselfie.pipelines.sources import open_source
folder_listing._WORTHWHILE = 1
for _ in range(15):
    print(open_source(sys.argv[1], 224, Path(sys.argv[2])).fingerprint())
    Path(sys.argv[1], "train/dog").touch()
"""


def test_processes_that_start_at_once(tree: Path, tmp_path: Path) -> None:
    """Each writes the index many times while the others read it."""
    (tmp_path / "open_it.py").write_text(_OPEN)
    words, program = [str(tree), str(tmp_path / "kept")], str(tmp_path / "open_it.py")
    children = [Forked(words, tmp_path, program=program) for _ in range(3)]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert {line for lines in said for line in lines} == {open_source(str(tree), 224).fingerprint()}
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_refused_tree_keeps_nothing(tree: Path, tmp_path: Path) -> None:
    make(tree, "train/stray.jpg")
    with pytest.raises(UserError, match="lies beside class folders"):
        open_source(str(tree), 224, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_index_folder_must_be_writable(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--data: .*the index of the images cannot be kept there"):
        open_source(str(tree), 224, tmp_path / "file")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), ""),
        (("train/a/x.webp",), "1 file of another format (.webp) passed over; fastselfie prepare converts it"),
        (("train/a/x.TIF", "train/a/b/y.gif", "val/z.tif", "train/.hidden.gif", "train/a/n.txt", "x.bmp"),
         "3 files of other formats (.gif, .tif) passed over; fastselfie prepare converts them"),
    ],
)  # fmt: skip
def test_images_of_other_formats_are_told_of(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "train/a/1.jpg", "val/2.jpg", *names)
    settle(root)
    for index in (None, tmp_path / "kept", tmp_path / "kept"):
        assert open_source(str(root), 224, index).remark == said


def test_names_are_what_they_were(tmp_path: Path) -> None:
    plain = ("a", "b/c d", "ü", "", os.fsdecode(b"\xff"))
    for names in (Names.of(plain), Names.of(iter(plain))):
        assert len(names) == 5
        assert tuple(names[index] for index in range(5)) == plain
        assert names[-1] == plain[-1]
    assert len(Names.of(())) == 0
    with pytest.raises(IndexError):
        names[5]
    labels_S = np.zeros(5, dtype=np.int64)
    printed = b"".join(Files(root=tmp_path, names=names, labels_S=labels_S).identity())
    assert printed == b"\0".join(map(os.fsencode, plain)) + labels_S.tobytes()


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o644), (0o700, 0o600), (0o2775, 0o664)])
def test_an_index_is_for_those_who_may_read_its_folder(folder: int, file: int, tmp_path: Path) -> None:
    path = tmp_path / "kept" / "x.index"
    path.parent.mkdir()
    path.parent.chmod(folder)
    write_index(path, Index(header={}, arrays={}))
    assert path.stat().st_mode & 0o777 == file


def test_what_another_process_kept_meanwhile_stays(tmp_path: Path) -> None:
    """It may be mapped there."""
    path = tmp_path / "an.index"
    for replace, expected in ((False, b"one"), (False, b"one"), (True, b"two")):
        keep_bytes(path, [b"two" if path.exists() else b"one"], replace=replace)
        assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_indices_are_mapped_whole_or_not_at_all(tmp_path: Path) -> None:
    rows = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "<i8"), ("b", "<f4")])
    arrays = {"rows": rows, "none": np.zeros((0, 3), np.int32), "bytes": np.arange(70, dtype=np.uint8).reshape(7, 10)}
    path = tmp_path / "below" / "an.index"
    write_index(path, Index(header={"ü": [1, None]}, arrays=arrays))
    found = read_index(path)
    assert found is not None
    assert found.header == {"ü": [1, None]}
    assert isinstance(found.arrays["rows"], np.memmap)
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert np.array_equal(found.arrays[name], array)
    data = path.read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        found = read_index(path)  # None, or nothing was damaged but a byte between the arrays
        assert found is None or found.header == {"ü": [1, None]}
        assert found is None or all(np.array_equal(found.arrays[name], array) for name, array in arrays.items())
    assert read_index(tmp_path / "nothing") is None
    for header in (b"[" * 100_000, b"[1]", b'{"arrays": {}, "bytes": 0}', b'{"header": {}, "arrays": 3, "bytes": 0}'):
        begin = b"fastselfie index 1\n" + struct.pack("<QI", len(header), zlib.crc32(header)) + header
        path.write_bytes(begin + bytes(-len(begin) % 64))
        assert read_index(path) is None


def test_small_trees_are_not_worth_it(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    open_source(str(tree), 224, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
