"""`fastselfie prepare`: what is packed, told by tarfile, zlib and WebDataset; a pass that is killed at any moment."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastselfie.cli import status
from fastselfie.errors import UserError
from fastselfie.pipelines import shrinking_pool
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.prepare import Prepared, open_encoded, prepare
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.source import EncodedImages, Source
from tests.command import TIMEOUT_S, assert_refused, contents, end, fastselfie, start, succeed
from tests.photographs import jpeg, noise, picture, png, write

SMALL = Shrinking(size=48, side="shorter", quality=95)
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


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


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
    assert manifest["settings"] == {"size": 48, "quality": 95, "side": "shorter"}
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
    assert lines[2].startswith("4 images kept their bytes")
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
    assert np.abs(shown - np.rot90(picture(48, 60, 5), -1)).mean() < 3


def test_asked_again_it_says_so(packed: tuple[Path, str], photographs: Path) -> None:
    folder, before = packed[0], contents(packed[0])
    (folder / "unfinished").mkdir()  # of a process killed after its last word
    again = succeed("prepare", photographs, folder, "--size", "48", "--workers", "1", cwd=photographs.parent)
    assert again.stdout.startswith(f"{folder}: was packed before; 8 images in train and 2 images in val")
    assert "1 rejected: is cut off" in again.stdout
    assert contents(folder) == before


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Exit status 2 and one line; that line. In this process, for the sake of time."""
    assert status(["prepare", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "64"), "was packed from size 48, not 64"),
        (("--quality", "90"), "was packed from quality 95, not 90"),
        (("--side", "longer"), "was packed from side shorter, not longer"),
        (("--shard-mb", "9"), "was packed from shard_bytes"),
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
        (("flat", "foreign"), "DST foreign: its dataset.json was not written by prepare"),
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


# A pass of some seconds, which may be killed.


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that give several shards of a megabyte, and damaged ones among them."""
    folder = tmp_path_factory.mktemp("many") / "source"
    image = noise(300, 450)
    for number in range(45):
        data = jpeg(np.roll(image, number * 31, axis=1), quality=90)
        write(folder / "train" / "ab"[number // 30], [(f"{number:02}.jpg", data if number % 9 else data[:-500])])
    write(folder / "val", [("a/0.jpg", jpeg(noise(300, 300)))])
    return folder


OPTIONS = ("--size", "224", "--shard-mb", "1")


@pytest.fixture(scope="module")
def undisturbed(many: Path) -> Path:
    folder = many.parent / "undisturbed"
    succeed("prepare", many, folder, *OPTIONS, "--workers", "1", cwd=many.parent)
    assert len(list(folder.glob("train-*.tar"))) >= 5
    assert all(path.stat().st_size <= 1 << 20 for path in folder.glob("train-*.tar"))
    return folder


def test_keys_go_on_over_shards(undisturbed: Path) -> None:
    keys, index = [], np.load(undisturbed / "train.npy")
    for number, path in enumerate(sorted(undisturbed.glob("train-*.tar"))):
        names = [name for name in members(path) if name.endswith(".jpg")]
        assert (index["shard"] == number).sum() == len(names)
        keys += names
    assert keys == [f"{key:09d}.jpg" for key in range(40)]
    assert (index["label"] == 1).sum() == sum(1 for number in range(30, 45) if number % 9)


def test_the_number_of_processes_changes_nothing(many: Path, undisturbed: Path) -> None:
    folder = many.parent / "three"
    succeed("prepare", many, folder, *OPTIONS, "--workers", "3", cwd=many.parent)
    assert contents(folder) == contents(undisturbed)


def children(process: subprocess.Popen[str]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")  # a thread starts the pool
    return [int(number) for task in tasks for number in task.read_text().split()]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the pool, known by how multiprocessing starts them."""
    return [number for number in children(process) if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_gone(numbers: Iterable[int]) -> None:
    wait_for(lambda: not any(Path(f"/proc/{number}").exists() for number in numbers))


def in_mid_shard(folder: Path, finished: int) -> Callable[[], bool]:
    """Whether so many shards are finished, and another is being written."""

    def there() -> bool:
        state = folder / "unfinished"
        open_shard = state / "shard.tar"
        return (
            (state / f"train-{finished - 1:06d}.json").exists()
            and open_shard.exists()
            and open_shard.stat().st_size > 0
        )

    return there


def begin(many: Path, folder: Path, finished: int) -> subprocess.Popen[str]:
    process = start("prepare", many, folder, *OPTIONS, "--workers", "2", cwd=many.parent, before=os.setsid)
    wait_for(lambda: in_mid_shard(folder, finished)() or process.poll() is not None)
    return process


def test_killed_in_mid_shard_it_goes_on(many: Path, undisturbed: Path, capsys: Any) -> None:
    folder = many.parent / "killed"
    for finished in (1, 3):
        process = begin(many, folder, finished)
        started = workers(process)
        assert len(started) == 2
        process.kill()
        end(process)
        assert_gone(started)  # orphans by now: they end by themselves
        assert (folder / "unfinished" / "shard.tar").stat().st_size > 0
        assert not (folder / "dataset.json").exists()
    untouched = (folder / "train-000000.tar").stat()
    assert "was packed from quality 95, not 80" in refused(capsys, many, folder, *OPTIONS, "--quality", "80")
    ended = succeed("prepare", many, folder, *OPTIONS, "--workers", "1", cwd=many.parent)
    assert "40 images in train and 1 images in val" in ended.stdout
    assert contents(folder) == contents(undisturbed)
    assert (folder / "train-000000.tar").stat().st_ino == untouched.st_ino


def test_ctrl_c_leaves_no_process(many: Path, undisturbed: Path, capsys: Any) -> None:
    folder = many.parent / "interrupted"
    process = begin(many, folder, 1)
    started = children(process)
    assert "another process is packing into it" in refused(capsys, many, folder, *OPTIONS)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    ended = end(process)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert_gone(started)
    assert not (folder / "unfinished" / "shard.tar").exists()
    assert status(["prepare", str(many), str(folder), *OPTIONS]) == 0
    assert contents(folder) == contents(undisturbed)


def no_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def test_what_else_may_happen_to_a_pass(many: Path, undisturbed: Path) -> None:
    """A process of the pool is killed, a finished shard is lost, the disk is full: each costs some time alone."""
    folder = many.parent / "troubled"
    process = begin(many, folder, 2)
    os.kill(workers(process)[0], signal.SIGKILL)
    line = assert_refused(end(process))
    assert "a process was killed, perhaps for want of memory" in line
    assert str(many / "train") in line
    (folder / "train-000001.tar").unlink()
    kept = (folder / "train-000000.tar").stat()
    line = assert_refused(fastselfie("prepare", many, folder, *OPTIONS, cwd=many.parent, before=no_large_files))
    assert f"DST {folder}: cannot be written (File too large); make room" in line
    assert not (folder / "unfinished" / "shard.tar").exists()
    succeed("prepare", many, folder, *OPTIONS, cwd=many.parent)
    assert contents(folder) == contents(undisturbed)
    assert (folder / "train-000000.tar").stat().st_ino == kept.st_ino


# A source whose storage fails.


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


def test_storage_that_is_gone_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking_pool, "_PAUSES_S", (0.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"image 41: cannot be read \(Input/output error\), and so it went with 32"):
        pack(Storage(dict.fromkeys(range(10, 60), 99), count=60), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    prepared = pack(Storage({}, count=60), tmp_path / "out")
    assert (prepared.images, prepared.rejected) == ({"train": 60}, ())


@pytest.mark.parametrize("number", range(1, 12))
def test_ended_before_any_file_appears(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    pack(Storage({}), tmp_path / "undisturbed", test=Storage({}, count=3))
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


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
