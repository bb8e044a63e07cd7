"""Folders of photographs: which files count, which label each has, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastselfie.pipelines.image_folder import is_image_folder, read_image_folder
from fastselfie.pipelines.source import AnySplit, Files, Source
from tests.data_sources import refusal

CLASSES = {
    "train/cat/2.jpg": "cat", "train/cat/1.JPEG": "cat", "train/dog/b.png": "dog", "train/dog/a.Jpg": "dog",
    "train/Zebra/z.jpeg": "Zebra",
}  # fmt: skip
VAL = {"val/dog/v.jpg": "dog", "val/Zebra/w.PNG": "Zebra"}
FLAT = ("b.jpg", "a.png", "C.JPG")


def content(text: str) -> bytes:
    return b"\xff\xd8\xff" + text.encode() + b"\xff\xd9"


def make(folder: Path, *names: str) -> Path:
    """Files of those names; each has its own content between a JPEG's ends. Nothing is decoded here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name))
    return folder


def listed(split: AnySplit | None, root: Path, source: Source) -> dict[str, str]:
    """Each file of a split below ``root``, with the name of its class."""
    assert isinstance(split, Files)
    assert split.labels_S.dtype == np.int64
    names = [str(split.path(index).relative_to(root)) for index in range(len(split))]
    assert len(set(names)) == len(names)
    return {name: source.classes[label] for name, label in zip(names, split.labels_S.tolist(), strict=True)}


def names_of(split: AnySplit | None) -> tuple[str, ...]:
    assert isinstance(split, Files)
    return tuple(split.names[index] for index in range(len(split)))


def test_class_folders(tmp_path: Path) -> None:
    source = read_image_folder(make(tmp_path / "photos", *CLASSES, *VAL))
    assert source.name == "photos"
    assert source.classes == ("Zebra", "cat", "dog")
    assert listed(source.train, tmp_path / "photos", source) == CLASSES
    assert listed(source.test, tmp_path / "photos", source) == VAL
    assert names_of(source.train) == ("Zebra/z.jpeg", "cat/1.JPEG", "cat/2.jpg", "dog/a.Jpg", "dog/b.png")


def test_the_order_is_not_the_disks(tmp_path: Path) -> None:
    """Which is the order of creation in one file system and no visible one in another."""
    names = [f"train/{name}/{index * 37 % 50}.jpg" for name in ("dog", "cat", "bird") for index in range(50)]
    one = read_image_folder(make(tmp_path / "one", *names))
    other = read_image_folder(make(tmp_path / "other", *reversed(names)))
    for source in (one, other):
        assert source.classes == ("bird", "cat", "dog")
        assert names_of(source.train) == tuple(sorted(name.removeprefix("train/") for name in names))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("tests", "taken"), [(("val",), "val"), (("test",), "test"), (("val", "test"), "val"), ((), None)]
)
def test_what_is_tested_on(tests: tuple[str, ...], taken: str | None, tmp_path: Path) -> None:
    source = read_image_folder(make(tmp_path, *CLASSES, *(f"{name}/cat/{name}.jpg" for name in tests)))
    assert (source.test is None) == (taken is None)
    if taken is not None:
        assert listed(source.test, tmp_path, source) == {f"{taken}/cat/{taken}.jpg": "cat"}


def test_class_folders_may_be_nested(tmp_path: Path) -> None:
    names = {"train/cat/x/y/1.jpg": "cat", "train/cat/2.jpg": "cat", "train/dog/a/1.jpg": "dog"}
    source = read_image_folder(make(tmp_path, *names))
    assert listed(source.train, tmp_path, source) == names
    (tmp_path / "train" / "dog" / "linked").symlink_to(tmp_path / "train" / "cat" / "x")
    source = read_image_folder(tmp_path)
    assert listed(source.train, tmp_path, source) == names | {"train/dog/linked/y/1.jpg": "dog"}


@pytest.mark.parametrize("below", ["", "train"])
def test_flat_folders_have_no_labels(below: str, tmp_path: Path) -> None:
    source = read_image_folder(make(tmp_path, *(str(Path(below) / name) for name in FLAT)))
    assert source.classes == ()
    assert source.test is None
    assert names_of(source.train) == ("C.JPG", "a.png", "b.jpg")
    assert source.train.labels_S.tolist() == [0, 0, 0]


def test_flat_train_and_val(tmp_path: Path) -> None:
    source = read_image_folder(make(tmp_path, "train/a.jpg", "train/b.jpg", "val/c.jpg"))
    assert source.classes == ()
    assert isinstance(source.test, Files)
    assert source.test.path(0) == tmp_path / "val" / "c.jpg"


def test_what_does_not_count(tmp_path: Path) -> None:
    """Hidden files and folders, other suffixes, folders named like images, in class folders and in flat ones."""
    make(tmp_path / "classes", *CLASSES, "train/cat/.1.jpg", "train/cat/.x/1.jpg", "train/.cache/1.jpg",
         "train/notes.txt", "train/cat/a.gif", "train/cat/jpg", "train/cat/a.jpg.part", "readme.md")  # fmt: skip
    (tmp_path / "classes" / "train" / "cat" / "folder.jpg").mkdir()
    source = read_image_folder(tmp_path / "classes")
    assert listed(source.train, tmp_path / "classes", source) == CLASSES
    make(tmp_path / "flat", *FLAT, ".d.jpg", "e.webp", "below/notes.txt")
    (tmp_path / "flat" / "x.jpg").mkdir()
    flat = read_image_folder(tmp_path / "flat")
    assert names_of(flat.train) == ("C.JPG", "a.png", "b.jpg")


@pytest.mark.parametrize("target", [".", "../..", "../../train/cat"])
def test_a_link_to_a_folder_around_it_is_named(target: str, tmp_path: Path) -> None:
    """Without a word the cats would be there forty times, until the system gives up."""
    make(tmp_path, "train/cat/1.jpg")
    (tmp_path / "train" / "cat" / "again").symlink_to(target)
    assert refusal(tmp_path).endswith("/train/cat/again: is a link to a folder that it lies in; remove it")


def test_a_link_to_itself_is_one_bad_image(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    (tmp_path / "0.jpg").symlink_to("0.jpg")
    train = read_image_folder(tmp_path).train
    assert isinstance(train, Files)
    assert names_of(train) == ("0.jpg", "1.jpg")
    with pytest.raises(OSError, match="symbolic links"):
        train.read(0)


def test_a_dangling_link_counts(tmp_path: Path) -> None:
    """So that it is named when it is read, rather than missed in silence."""
    make(tmp_path, "train/cat/1.jpg")
    (tmp_path / "train" / "cat" / "2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = read_image_folder(tmp_path)
    assert names_of(source.train) == ("cat/1.jpg", "cat/2.jpg")


def test_the_fingerprint_is_of_names_and_labels(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", *CLASSES, *VAL)
    before = read_image_folder(folder).fingerprint()
    changes = {
        "name": lambda: os.rename(folder / "train/cat/1.JPEG", folder / "train/cat/0.JPEG"),
        "label": lambda: os.rename(folder / "train/cat/1.JPEG", folder / "train/dog/1.JPEG"),
        "one more": lambda: make(folder, "train/cat/3.jpg"),
        "one less": lambda: os.remove(folder / "train/cat/1.JPEG"),
        "no test": lambda: shutil.rmtree(folder / "val"),
    }
    seen = {before}
    for change in changes.values():
        change()
        seen.add(read_image_folder(folder).fingerprint())
        shutil.rmtree(folder)
        make(folder, *CLASSES, *VAL)
        assert read_image_folder(folder).fingerprint() == before
    assert len(seen) == 1 + len(changes)
    assert read_image_folder(folder.rename(tmp_path / "moved")).fingerprint() == before


def test_of_many_files_a_few_are_compared(tmp_path: Path) -> None:
    """So that some may be damaged, and another copy of the pictures is told from the first all the same."""
    folder = make(tmp_path, *(f"{index:03d}.jpg" for index in range(200)))
    before = read_image_folder(folder).probes()
    changed = []
    for path in sorted(folder.iterdir()):
        kept = path.read_bytes()
        path.write_bytes(content("another"))
        after = read_image_folder(folder).probes()
        changed.append(sum(old != new for old, new in zip(before, after, strict=True)))
        path.write_bytes(kept)
    assert set(changed) == {0, 1}
    assert sum(changed) == len(before) == 8
    (folder / "000.jpg").unlink()
    (folder / "000.jpg").symlink_to("nowhere")
    assert read_image_folder(folder).probes() == ["", *before[1:]]


def test_a_flat_part_takes_the_labels_from_the_whole(tmp_path: Path) -> None:
    """As where ImageNet's val/ lies as it was downloaded: enough to pretrain on."""
    for number, names in enumerate([(*CLASSES, "val/1.jpg"), ("train/1.jpg", "train/2.jpg", *VAL)]):
        source = read_image_folder(make(tmp_path / str(number), *names))
        assert source.classes == ()
        assert isinstance(source.test, Files)
        assert len(source.train) + len(source.test) == len(names)
        assert {*source.train.labels_S.tolist(), *source.test.labels_S.tolist()} == {0}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("cat/1.jpg", "dog/2.jpg"), "has folders of images but no train/"),
        (("train/notes.txt",), "train holds no JPEG or PNG file"),
        (("train/cat/1.jpg", "train/dog/notes.txt"), "train/dog holds no JPEG or PNG file"),
        (("train/cat/1.jpg", "train/stray.png"), "train/stray.png lies beside class folders"),
        ((*CLASSES, "val/horse/1.jpg"), "val/horse is a class that train/ has not"),
        ((*CLASSES, "val/cat/notes.txt"), "val/cat holds no JPEG or PNG file"),
        ((*CLASSES, "val/notes.txt"), "val holds no JPEG or PNG file"),
        (("1.jpg", "cat/2.jpg"), "cat lies beside images"),
        (("notes.txt",), "is no data set known here"),
        ((".hidden.jpg",), "is no data set known here"),
    ],
)
def test_refusals(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", *names)
    message = refusal(folder)
    assert said in message
    assert str(folder) in message


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_one_part_of_a_data_set(part: str, tmp_path: Path) -> None:
    folder = make(tmp_path, f"{part}/cat/1.jpg", f"{part}/dog/2.jpg") / part
    assert f"{folder} is one part of a data set" in refusal(folder)


def test_what_is_an_image_folder(tmp_path: Path) -> None:
    make(tmp_path, *FLAT, "train/notes", "classes/cat/1.jpg", "notes/readme.md")
    assert is_image_folder(tmp_path)
    assert is_image_folder(tmp_path / "classes")
    assert not is_image_folder(tmp_path / "notes")
    assert not is_image_folder(tmp_path / "a.png")
    assert not is_image_folder(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any folder")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    folder = make(tmp_path, *CLASSES) / "train" / "cat"
    folder.chmod(0)
    try:
        assert "cannot be read (Permission denied)" in refusal(tmp_path)
    finally:
        folder.chmod(0o755)
