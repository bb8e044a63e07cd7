"""`fastselfie prepare`: what is packed and said, told by tarfile, zlib and WebDataset."""

from __future__ import annotations

import csv
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import View
from tests.command import contents, succeed
from tests.packing import members, refused
from tests.photographs import jpeg, noise, picture, pipeline, png, write

ROW = [("offset", "<i8"), ("size", "<i4"), ("shard", "<i4"), ("label", "<i4"), ("checksum", "<u4")]


def large_tiff() -> bytes:
    """More pixels than are read, in few bytes."""
    file = io.BytesIO()
    Image.new("1", (20000, 10000)).save(file, "TIFF", compression="group4")
    return file.getvalue()


GOOD = {
    "apple/0.jpg": jpeg(picture(48, 60, 0)),  # fits: copied
    "apple/1.png": png(picture(30, 20, 1)),  # small: encoded, not enlarged
    "apple/3.jpg": jpeg(picture(96, 120, 3)),
    "bee/0.jpg": jpeg(picture(48, 48, 4), mode="L"),  # copied
    "bee/1.jpg": jpeg(picture(48, 60, 5), orientation=6),
    "bee/4.jpg": jpeg(picture(50, 60, 6), mode="CMYK"),
    "cat/0.png": png(picture(200, 100, 7), mode="RGBA"),
    "cat/9.jpg": jpeg(picture(40, 90, 8), progressive=True),  # copied
}
SIDES = [(60, 48), (20, 30), (60, 48), (48, 48), (48, 60), (58, 48), (48, 96), (90, 40)]
COPIED = (0, 3, 7)
BAD = {
    "apple/2.jpg": (b"", "is empty"),
    "bee/2.jpg": (jpeg(noise(60, 60))[:-900], "is cut off"),
    "bee/3.png": (b"hello", "is no JPEG or PNG image"),
    "cat/3.jpg": (large_tiff(), "has 10000 x 20000 pixels, more than the 134217728 that are read"),
}
VAL = {"bee/x.jpg": jpeg(picture(100, 100, 9)), "cat/y.jpg": jpeg(picture(10, 10, 10))}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "photographs"
    write(folder / "train", (GOOD | {name: data for name, (data, _) in BAD.items()}).items())
    write(folder / "val", VAL.items())
    return folder


@pytest.fixture(scope="module")
def packed(photographs: Path) -> tuple[Path, str]:
    """The folder, and what the command said."""
    folder = photographs.parent / "packed"
    ended = succeed("prepare", photographs, folder, "--size", "48", "--workers", "3", cwd=photographs.parent)
    assert ended.stderr == ""
    return folder, ended.stdout


def test_the_shards_hold_the_images_that_can_be_decoded(packed: tuple[Path, str]) -> None:
    found = members(packed[0] / "train-000000.tar")
    assert list(found) == [f"{key:09d}.{kind}" for key in range(8) for kind in ("jpg", "cls")]
    for key, (name, data) in enumerate(GOOD.items()):
        image = Image.open(io.BytesIO(found[f"{key:09d}.jpg"]))
        image.load()
        assert (image.format, image.size) == ("JPEG", SIDES[key])
        assert (found[f"{key:09d}.jpg"] == data) == (key in COPIED)
        assert found[f"{key:09d}.cls"] == str("abc".index(name[0])).encode()
    assert [value for name, value in members(packed[0] / "val-000000.tar").items() if name.endswith("cls")] == [
        b"1",
        b"2",
    ]


def test_the_index_points_into_the_shards(packed: tuple[Path, str]) -> None:
    folder = packed[0]
    for split, labels in (("train", [0, 0, 0, 1, 1, 1, 2, 2]), ("val", [1, 2])):
        index = np.load(folder / f"{split}.npy", mmap_mode="r")
        assert index.dtype == np.dtype(ROW)
        assert index["label"].tolist() == labels
        assert index["shard"].tolist() == [0] * len(labels)
        whole, images = (folder / f"{split}-000000.tar").read_bytes(), members(folder / f"{split}-000000.tar")
        for key, row in enumerate(index):
            data = whole[row["offset"] : row["offset"] + row["size"]]
            assert data == images[f"{key:09d}.jpg"]
            assert zlib.crc32(data) == row["checksum"]


def test_the_manifest(packed: tuple[Path, str], photographs: Path) -> None:
    folder = packed[0]
    manifest = json.loads((folder / "dataset.json").read_bytes())
    assert (manifest["format"], manifest["classes"], manifest["rejected"]) == (1, ["apple", "bee", "cat"], 4)
    assert manifest["settings"] == {"size": 48, "quality": 95, "side": "shorter", "recode": "needed"}
    for split, images in (("train", 8), ("val", 2)):
        size = (folder / f"{split}-000000.tar").stat().st_size
        crc = zlib.crc32((folder / f"{split}.npy").read_bytes())
        assert manifest["splits"][split] == {
            "images": images, "bytes": size,
            "shards": [{"name": f"{split}-000000.tar", "bytes": size, "images": images}],
            "index": {"name": f"{split}.npy", "crc32": crc},
        }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {
        "dataset.json", "rejected.csv", "train.npy", "val.npy", "train-000000.tar", "val-000000.tar",
    }  # fmt: skip


def test_what_was_rejected_is_listed(packed: tuple[Path, str], photographs: Path) -> None:
    with (packed[0] / "rejected.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    listed = [[str(photographs / "train" / name), reason] for name, (_, reason) in BAD.items()]
    assert rows == [["name", "reason"], *listed]


def test_the_summary(packed: tuple[Path, str], photographs: Path) -> None:
    read = sum(path.stat().st_size for path in photographs.rglob("*.*"))
    written = sum(path.stat().st_size for path in packed[0].glob("*.tar"))
    lines = [line.strip() for line in packed[1].splitlines()]
    assert lines[0] == f"{packed[0]}: 8 images in train and 2 images in val, 3 classes"
    assert lines[1] == f"{read / 1e6:.2f} MB read, {written / 1e6:.2f} MB written"
    assert lines[2].startswith("4 images kept their pixels")
    assert lines[3:7] == [
        "1 rejected: is empty", "1 rejected: is cut off", "1 rejected: is no JPEG or PNG image",
        "1 rejected: has N x N pixels, more than the N that are read",
    ]  # fmt: skip
    assert lines[7:9] == ["rejected.csv names them", lines[8]]
    assert lines[8].endswith(" images/s")


def test_webdataset_reads_it(packed: tuple[Path, str]) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    samples = list(webdataset.WebDataset(str(packed[0] / "train-000000.tar"), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{key:09d}" for key in range(8)]
    assert [sample["cls"] for sample in samples] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [sample["jpg"].shape[1::-1] for sample in samples] == SIDES
    shown = samples[4]["jpg"].astype(float)  # stored on its side: a quarter turn clockwise
    assert np.abs(shown - np.rot90(picture(48, 60, 5), -1)).mean() < 5


def test_asked_again_it_says_so(packed: tuple[Path, str], photographs: Path) -> None:
    folder, before = packed[0], contents(packed[0])
    (folder / "unfinished").mkdir()  # of a process killed after its last word
    again = succeed("prepare", photographs, folder, "--size", "48", "--workers", "1", cwd=photographs.parent)
    assert again.stdout.startswith(f"{folder}: was packed before; 8 images in train and 2 images in val")
    assert "1 rejected: is cut off" in again.stdout
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "64"), "was packed with --size 48, not --size 64"),
        (("--quality", "90"), "was packed with --quality 95, not --quality 90"),
        (("--side", "longer"), "was packed with --side shorter, not --side longer"),
        (("--shard-mb", "9"), "was packed with --shard-mb 512, not --shard-mb 9"),
    ],
)
def test_other_settings_are_refused(
    options: tuple[str, ...], said: str, packed: tuple[Path, str], photographs: Path, capsys: Any
) -> None:
    before = contents(packed[0])
    assert said in refused(capsys, photographs, packed[0], "--size", "48", *options)
    assert contents(packed[0]) == before


def test_another_source_is_refused(packed: tuple[Path, str], tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "photographs" / "train", [("bee/0.jpg", jpeg(picture(48, 60)))])
    line = refused(capsys, tmp_path / "photographs", packed[0], "--size", "48")
    assert "was packed from other data (photographs)" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("synthetic:50", "out"), "SRC: synthetic:50 has small images"),
        (("~no-such-user/x", "out"), "SRC: ~no-such-user/x: there is no such user's home"),
        (("n" * 300, "out"), "cannot be read (File name too long)"),
        (("nowhere", "out"), "SRC: 'nowhere' does not exist"),
        (("full", "full"), "SRC: full is no data set known here"),
        (("flat", "full"), "DST full: is not an empty folder; choose another"),
        (("flat", "full/file"), "DST full/file: is not an empty folder"),
        (("flat", "full/file/out"), "DST full/file/out: cannot be written"),
        (("flat", "foreign"), "DST foreign: is not as prepare leaves a folder"),
        (("flat", "out", "--workers", "0"), "--workers 0: must be at least 1"),
        (("flat", "out", "--size", "4"), "--size 4: must be at least 8"),
        (("flat", "out", "--quality", "101"), "--quality 101"),
        (("flat", "out", "--shard-mb", "0"), "--shard-mb 0"),
        (("flat",), "DST: must be given"),
        (("bad", "out"), "SRC: no image of train can be used; the first: bad/0.jpg is no JPEG or PNG image"),
    ],
)
def test_refusals(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "flat", [("0.jpg", jpeg(picture(48, 60)))])
    write(tmp_path / "bad", [("0.jpg", b"hello")])
    write(tmp_path / "full", [("file", b"")])
    write(tmp_path / "foreign", [("dataset.json", b'{"format": 1}')])
    assert said in refused(capsys, *words)


def test_cifar10_needs_no_packing(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    write(folder, [(name, b"") for name in names])
    assert "small images" in refused(capsys, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_markers_change_no_view(tmp_path: Path) -> None:
    """The same windows of the same images, cut out of their files or not: bit for bit."""
    pytest.importorskip("numba", reason="fastselfie[markers] is not installed")
    pytest.importorskip("simplejpeg", reason="fastselfie[turbo] is not installed")
    write(tmp_path / "flat", [(f"{seed}.jpg", jpeg(picture(300, 400, seed))) for seed in range(4)])
    view = View(size=32, crop="resized", flip=True)
    bytes_, views = [], []
    for recode in ("needed", "markers"):
        ended = succeed(
            "prepare", "flat", recode, "--size", "300", "--recode", recode, "--workers", "1", cwd=tmp_path
        )  # fmt: skip
        assert ended.stdout.splitlines()[2].strip().startswith("4 images kept their pixels")
        assert json.loads((tmp_path / recode / "dataset.json").read_bytes())["settings"]["recode"] == recode
        images = open_source(str(tmp_path / recode), 32).train
        assert isinstance(images, EncodedImages)
        loaded = pipeline(images, view, batch=8, decoder="turbo")
        views.append([loaded.batch(step * 8, step * 8 + 8).images() for step in range(10)])
        bytes_.append([images.read(index) for index in range(4)])
    assert all(len(plain) < len(marked) for plain, marked in zip(*bytes_, strict=True))
    for one, other in zip(*views, strict=True):
        assert torch.equal(one, other)


def test_other_formats_in_folders(tmp_path: Path) -> None:
    """What training passes over, prepare packs: every format that Pillow writes here, beside a PNG."""
    image = Image.fromarray(picture(40, 50))
    formats = ("webp", "gif", "bmp", "tiff", "avif", "png")
    for number, name in enumerate(formats):
        folder = tmp_path / "photographs" / "train" / str(number)
        folder.mkdir(parents=True)
        image.save(folder / f"image.{name}")
    (tmp_path / "photographs" / "train" / "0" / "notes.txt").write_text("not an image")
    ended = succeed("prepare", "photographs", "packed", "--size", "32", "--workers", "1", cwd=tmp_path)
    packed = open_source(str(tmp_path / "packed"), 32).train
    assert isinstance(packed, EncodedImages)
    assert packed.labels_S.tolist() == list(range(len(formats))), ended.stdout
    for index in range(len(formats)):
        with Image.open(io.BytesIO(packed.read(index))) as opened:
            assert (opened.format, opened.size) == ("JPEG", (40, 32))
            assert abs(np.asarray(opened).astype(int) - np.asarray(image.resize((40, 32)))).mean() < 12
