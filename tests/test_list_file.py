"""Lists of files: which files they name, with which labels, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fastselfie.pipelines.source import AnySplit, Files
from fastselfie.pipelines.sources import open_source
from tests.data_sources import refusal


def make(folder: Path, *names: str) -> Path:
    """Files that hold their own name. Nothing is decoded here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def read(split: AnySplit | None) -> list[tuple[str, int]]:
    """What each file of the split holds, and its label."""
    assert isinstance(split, Files)
    return [(split.read(index).decode(), int(split.labels_S[index])) for index in range(len(split))]


def test_paths_without_labels(tmp_path: Path) -> None:
    place = make(tmp_path / "photos", "a.jpg", "b/ü 1.png", "#c.jpg")
    elsewhere = make(tmp_path / "elsewhere", "d.jpg")
    lines = ["# a comment", "b/ü 1.png", "", "  ", "a.jpg", str(elsewhere / "d.jpg"), "./#c.jpg", "a.jpg"]
    (place / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    source = open_source(str(place / "list.txt"), 224)
    assert source.classes == ()
    assert source.test is None
    assert read(source.train) == [("b/ü 1.png", 0), ("a.jpg", 0), ("d.jpg", 0), ("#c.jpg", 0), ("a.jpg", 0)]
    assert source.train.labels_S.dtype == "int64"


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["fox", "ant", "fox"], ("ant", "fox"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        (["10", "9", "x"], ("10", "9", "x"), [0, 1, 2]),
        (["9" * 5000, "8"], ("8", "9" * 5000), [1, 0]),
        (["red fox", " ant ", "-1"], ("-1", "ant", "red fox"), [2, 1, 0]),
    ],
)
def test_classes(labels: Sequence[str], classes: tuple[str, ...], expected: list[int], tmp_path: Path) -> None:
    make(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    lines = [f"{number}.jpg\t{label}" for number, label in enumerate(labels)]
    (tmp_path / "a.txt").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    source = open_source(str(tmp_path / "a.txt"), 224)
    assert source.classes == classes
    assert read(source.train) == [(f"{number}.jpg", label) for number, label in enumerate(expected)]


@pytest.mark.parametrize(
    ("tests", "taken"), [(("val",), "val"), (("test",), "test"), (("val", "test"), "val"), ((), None)]
)
def test_folders_of_lists(tests: Sequence[str], taken: str | None, tmp_path: Path) -> None:
    make(tmp_path, "images/a.jpg", "images/b.jpg", *(f"{name}/c.jpg" for name in tests))
    (tmp_path / "train.txt").write_text("images/a.jpg\tfox\nimages/b.jpg\tant\n")
    for name in tests:
        (tmp_path / f"{name}.txt").write_text(f"{name}/c.jpg\tfox\n")
    source = open_source(str(tmp_path), 224)
    assert source.name == tmp_path.name
    assert read(source.train) == [("images/a.jpg", 1), ("images/b.jpg", 0)]
    assert (None if source.test is None else read(source.test)) == (None if taken is None else [(f"{taken}/c.jpg", 1)])


def test_a_list_without_labels_takes_them_from_the_whole(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "train.txt").write_text("a.jpg\tx\nb.jpg\ty\n")
    (tmp_path / "val.txt").write_text("a.jpg\n")
    source = open_source(str(tmp_path), 224)
    assert source.classes == ()
    assert read(source.train) == [("a.jpg", 0), ("b.jpg", 0)]


def test_class_folders_go_before_lists(tmp_path: Path) -> None:
    """ImageNet is often unpacked beside lists of its files."""
    make(tmp_path, "train/fox/a.jpg", "train/ant/b.jpg")
    (tmp_path / "train.txt").write_text("fox/a.jpg 0\n")
    assert open_source(str(tmp_path), 224).classes == ("ant", "fox")


def test_the_fingerprint_is_of_names_and_labels(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    texts = ["a.jpg\tx\nb.jpg\ty", "a.jpg\ty\nb.jpg\tx", "a.jpg\nb.jpg", "b.jpg\na.jpg", "a.jpg\nb.jpg\na.jpg"]
    prints = []
    for text in [*texts, *texts]:
        (tmp_path / "list.txt").write_text(text)
        prints.append(open_source(str(tmp_path / "list.txt"), 224).fingerprint())
    assert prints[:5] == prints[5:]
    assert len(set(prints)) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "names no file"),
        (b"# nothing\n\n", "names no file"),
        (b"a.jpg\tx\nb.jpg\n", "line 2 has no class, and those before have one"),
        (b"a.jpg\n\nb.jpg\tx\n", "line 3 has a class, and those before have none"),
        (b"a.jpg\t\n", "line 1 is not understood"),
        (b"\tfox\n", "line 1 is not understood"),
        (b"a.jpg\tx\ty\n", "line 1 is not understood"),
        (b"a\0.jpg\n", "line 1 is not understood"),
        (b"\xff\xfea\0.\0", "is no UTF-8 text"),
        (b"a.jpg 0\nb.jpg 1\n", "'a.jpg 0' does not exist: paths are relative to "),
        (b"x" * 100_000, "does not exist"),
    ],
)
def test_refusals(text: bytes, said: str, tmp_path: Path) -> None:
    path = make(tmp_path, "a.jpg", "b.jpg") / "list.txt"
    path.write_bytes(text)
    message = refusal(path)
    assert said in message
    assert str(path) in message
    assert len(message) < 1000


def test_a_class_that_is_not_trained_on(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "train.txt").write_text("a.jpg\tant\n")
    (tmp_path / "val.txt").write_text("a.jpg\tfox\n")
    assert "val.txt: fox is a class that train.txt has not" in refusal(tmp_path)
