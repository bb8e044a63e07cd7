"""Tar files that cannot be used are refused in one line, and nothing is kept of them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data_sources import refusal
from tests.packed_shards import add
from tests.tar_shards import content, labelled, with_json, write


def cut(path: Path, keep: int) -> None:
    os.truncate(path, keep)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def link(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "b.jpg"
        tar.addfile(member)


def twice(folder: Path, *names: str) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in names:
            add(tar, name, content(1))


def big(folder: Path) -> Path:
    """A shard of 2 MB."""
    return write(
        folder / "a.tar", [{"__key__": str(number), "jpg": bytes(100_000), "cls": b"0"} for number in range(20)]
    )


def third_header(folder: Path) -> int:
    """Where the third member begins, that of the second sample."""
    with tarfile.open(folder / "a.tar") as tar:
        return tar.getmembers()[2].offset


def headers(folder: Path, *members: tuple[bytes, int]) -> None:
    """Headers alone, of these kinds and sizes. Two underscores: a name that is passed over."""
    parts = []
    for kind, size in members:
        member = tarfile.TarInfo("__a.jpg")
        member.type, member.size = kind, size
        parts.append(member.tobuf(tarfile.GNU_FORMAT))
    (folder / "a.tar").write_bytes(b"".join(parts) + bytes(1024))


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in an image": (lambda folder: cut(big(folder), third_header(folder) - 2000), "a.tar is cut off or damaged"),
    "cut in a header": (lambda folder: cut(big(folder), third_header(folder) + 100), "a.tar is cut off or damaged"),
    "a header is damaged": (
        lambda folder: overwrite(big(folder), third_header(folder), b"x"),
        "a.tar is cut off or damaged",
    ),
    "a header is zeros": (
        lambda folder: overwrite(big(folder), third_header(folder), bytes(1024)), "a.tar is cut off or damaged",
    ),
    "a name of a terabyte": (lambda folder: headers(folder, (b"L", 2**40)), "a.tar is cut off or damaged"),
    "a name of less than nothing": (lambda folder: headers(folder, (b"K", -1024)), "a.tar is cut off or damaged"),
    "headers of headers": (lambda folder: headers(folder, *[(b"x", 0)] * 3000), "a.tar is cut off or damaged"),
    "a member before itself": (lambda folder: headers(folder, (b"5", 0), (b"0", -512)), "from byte 512 to 512 of 2048"),
    "a member beyond the end": (lambda folder: headers(folder, (b"0", 2**60)), "a.tar is cut off or damaged"),
    "an empty file": (lambda folder: (folder / "a.tar").touch(), "a.tar is cut off or damaged"),
    "no tar at all": (lambda folder: (folder / "a.tar").write_bytes(b"x" * 9000), "a.tar is cut off or damaged"),
    "no images": (lambda folder: write(folder / "a.tar", [{"__key__": "a", "txt": b"b"}]), "holds no JPEG or PNG"),
    "a label missing": (
        lambda folder: write(folder / "a.tar", [*labelled(0, [1]), {"__key__": "b", "jpg": b"c"}]),
        "a.tar: b.jpg has no label",
    ),
    "a label too many": (
        lambda folder: write(folder / "a.tar", [{"__key__": "b", "jpg": b"c"}, *labelled(0, [1])]),
        "a.tar: n00000.jpg has a label",
    ),
    "no number": (lambda folder: write(folder / "a.tar", [{"__key__": "b", "jpg": b"c", "cls": b"x"}]), "b.cls holds"),
    "negative": (lambda folder: write(folder / "a.tar", labelled(0, [-1])), "n00000.cls holds no label"),
    "huge": (lambda folder: write(folder / "a.tar", labelled(0, [10**6])), "n00000.cls holds no label"),
    "no JSON": (lambda folder: write(folder / "a.tar", [{"__key__": "b", "jpg": b"c", "json": b"{"}]), "b.json holds"),
    "deep JSON": (
        lambda folder: write(folder / "a.tar", [{"__key__": "b", "jpg": b"c", "json": b"[" * 100_000}]), "b.json holds",
    ),
    "true": (lambda folder: write(folder / "a.tar", with_json([{"label": True}])), "0.json holds no label"),
    "names and numbers": (
        lambda folder: write(folder / "a.tar", with_json([{"label": 1}, {"label": "fox"}])),
        "some labels are numbers and some are names",
    ),
    "an unknown class": (
        lambda folder: (write(folder / "train.tar", labelled(0, [1])), write(folder / "val.tar", labelled(0, [2]))),
        "2 is a class of val that train has not",
    ),
    "some names say it": (
        lambda folder: (write(folder / "train.tar", labelled(0, [1])), write(folder / "extra.tar", labelled(0, [1]))),
        "extra.tar: is it trained on?",
    ),
    "nothing to train on": (lambda folder: write(folder / "val.tar", labelled(0, [1])), "val.tar: is it trained on?"),
    "two splits": (lambda folder: write(folder / "train-val.tar", labelled(0, [1])), "is named after two splits"),
    "images beside": (
        lambda folder: write(folder / "a.tar", labelled(0, [1])).with_name("p.png").write_bytes(b""),
        "holds tar files and images such as p.png",
    ),
    "a link": (link, "a.jpg is a link"),
    "a name twice": (lambda folder: twice(folder, "a.jpg", "a.jpg"), "a.jpg is there twice"),
    "two images": (lambda folder: twice(folder, "a.jpg", "a.png"), "a.jpg and a.png are one sample"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, tmp_path: Path) -> None:
    make, said = REFUSALS[case]
    place = tmp_path / "tars"
    place.mkdir()
    make(place)
    message = refusal(place, tmp_path / "kept")
    assert said in message
    assert str(place) in message
    assert not (tmp_path / "kept").exists()
