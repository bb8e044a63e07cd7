"""CIFAR-10 in its official layout, made by hand: pixels end where they belong, every defect is named in one line."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines.cifar import is_cifar10, read_cifar10

FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(number: int) -> dict[bytes, object]:
    rows = np.random.default_rng(number).integers(0, 256, (2, 3072), dtype=np.uint8)
    return {b"batch_label": b"x", b"labels": [number, number + 1], b"data": rows}


def write_folder(folder: Path, protocol: int = 2) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        (folder / name).write_bytes(pickle.dumps(batch(number), protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol))
    return folder


def write_archive(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname="cifar-10-batches-py")
    return archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "cifar-10-batches-py")


def test_folder_parent_and_archive_agree(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py" / "readme.html").write_text("no batch")
    archive = write_archive(folder, tmp_path / "cifar-10-python.tar.gz")
    for path in (folder, tmp_path, archive):
        assert is_cifar10(path)
        source = read_cifar10(path)
        assert source.classes == tuple(NAMES)
        assert source.train.images_SHW3.shape == (10, 32, 32, 3)
        assert source.train.images_SHW3.flags.c_contiguous
        assert [array.dtype.name for array in (source.train.images_SHW3, source.train.labels_S)] == ["uint8", "int64"]
        assert source.train.labels_S.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
        assert source.test.labels_S.tolist() == [5, 6]
        for number, name in enumerate(FILES):
            rows = batch(number)[b"data"]
            images = source.test.images_SHW3 if name == "test_batch" else source.train.images_SHW3[2 * number :][:2]
            assert isinstance(rows, np.ndarray)
            for channel in range(3):  # the layout that the data set's page describes, in its own words
                plane = rows[:, 1024 * channel : 1024 * (channel + 1)]
                np.testing.assert_array_equal(images[..., channel].reshape(2, 1024), plane)


def test_one_pixel(folder: Path) -> None:
    rows = np.zeros((1, 3072), dtype=np.uint8)
    rows[0, 2 * 1024 + 5 * 32 + 30] = 9  # blue, row 5, column 30
    (folder / "test_batch").write_bytes(pickle.dumps({"data": rows, "labels": [4]}))  # text keys, as Python 3 writes
    image = read_cifar10(folder).test.images_SHW3[0]
    assert image[5, 30].tolist() == [0, 0, 9]
    assert image.sum() == 9


@pytest.mark.parametrize("protocol", [0, 2, 4, pickle.HIGHEST_PROTOCOL])
def test_protocols(protocol: int, tmp_path: Path) -> None:
    source = read_cifar10(write_folder(tmp_path / "data", protocol))
    assert len(source.train) == 10


def test_names_of_classes_without_meta(folder: Path) -> None:
    (folder / "batches.meta").unlink()
    assert read_cifar10(folder).classes == tuple(NAMES)


@pytest.mark.parametrize("missing", FILES)
def test_missing_batch_is_named(missing: str, folder: Path, tmp_path: Path) -> None:
    (folder / missing).unlink()
    for path in (folder, write_archive(folder, tmp_path / "a.tar.gz")):
        with pytest.raises(UserError, match=missing):
            read_cifar10(path)


ROWS = np.zeros((2, 3072), dtype=np.uint8)
BAD: dict[str, dict[str, object]] = {
    "no 'labels'": {"data": ROWS},
    "no 'data'": {"labels": [1, 2]},
    r"float64 \(2, 3072\)": {"data": ROWS.astype(float), "labels": [1, 2]},
    r"uint8 \(2, 12288\)": {"data": np.zeros((2, 12288), np.uint8), "labels": [1, 2]},
    r"uint8 \(2, 3, 32, 32\)": {"data": ROWS.reshape(2, 3, 32, 32), "labels": [1, 2]},
    "is a list": {"data": [1, 2], "labels": [1, 2]},
    "2 images but 3 labels": {"data": ROWS, "labels": [1, 2, 3]},
    "from 0 to 9": {"data": ROWS, "labels": [1, 10]},
    "whole numbers from 0": {"data": ROWS, "labels": [1, -1]},
    "list of whole": {"data": ROWS, "labels": [1, 2.0]},
    "a list of": {"data": ROWS, "labels": np.zeros((2, 2), np.int64)},
    "should be a list": {"data": ROWS, "labels": "12"},
    "no images": {"data": ROWS[:0], "labels": []},
}


@pytest.mark.parametrize(("message", "contents"), BAD.items(), ids=BAD.keys())
def test_wrong_batches_are_named(message: str, contents: dict[str, object], folder: Path) -> None:
    (folder / "data_batch_3").write_bytes(pickle.dumps(contents))
    with pytest.raises(UserError, match=message) as caught:
        read_cifar10(folder)
    assert str(folder / "data_batch_3") in str(caught.value)


def test_labels_may_be_an_array(folder: Path) -> None:
    (folder / "test_batch").write_bytes(pickle.dumps({"data": ROWS, "labels": np.array([8, 9])}))
    assert read_cifar10(folder).test.labels_S.tolist() == [8, 9]


@pytest.mark.parametrize("names", [[b"one"], None, list(range(10))])
def test_damaged_meta(names: object, folder: Path) -> None:
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(UserError, match=r"batches\.meta"):
        read_cifar10(folder)


def test_a_folder_in_a_batch_s_place(folder: Path) -> None:
    (folder / "data_batch_2").unlink()
    (folder / "data_batch_2").mkdir()
    with pytest.raises(UserError, match="data_batch_2 cannot be opened"):
        read_cifar10(folder)


def outcome(path: Path) -> str:
    """The message, or none where ``path`` was read; anything but a UserError goes through and fails the test."""
    try:
        read_cifar10(path)
    except UserError as error:
        return str(error)
    return ""


def test_flipped_bytes_in_a_batch(folder: Path) -> None:
    generator = np.random.default_rng(0)
    whole = (folder / "data_batch_4").read_bytes()
    # Flips among thousands of pixels only change a picture: most trials take the bytes around them.
    around = [*range(250), *range(len(whole) - 80, len(whole))]
    found = []
    for trial in range(600):
        damaged = bytearray(whole)
        for _ in range(1 + trial % 3):
            place = int(generator.choice(around)) if trial % 4 else int(generator.integers(len(whole)))
            damaged[place] = generator.integers(256)
        (folder / "data_batch_4").write_bytes(damaged)
        found.append(outcome(folder))
    assert all(not message or str(folder / "data_batch_4") in message for message in found)
    assert 0 < found.count("") < len(found)


def test_damaged_archives(folder: Path, tmp_path: Path) -> None:
    archive = write_archive(folder, tmp_path / "a.tgz")
    whole = archive.read_bytes()
    generator = np.random.default_rng(0)
    for length in [*range(40), *generator.integers(40, len(whole), 100), len(whole) - 1]:
        archive.write_bytes(whole[:length])
        assert str(archive) in outcome(archive), f"cut to {length}"
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.integers(10, len(whole))] ^= 1 << int(generator.integers(8))  # past gzip's header
        archive.write_bytes(damaged)
        assert str(archive) in outcome(archive)


def test_archives_of_something_else(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "test_batch", arcname="cifar-10-batches-py/../test_batch")
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, str(folder / "data_batch_1")
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("other/data_batch_1"), io.BytesIO())
    assert "has no cifar-10-batches-py/data_batch_1" in outcome(archive)
    archive.write_text("<html>404</html>")
    assert "a.tar.gz is not a whole tar.gz archive" in outcome(archive)


@pytest.mark.parametrize(("kind", "size"), [(b"0", 2**62), (b"L", 2**40), (b"x", -1024), (b"0", -512)])
def test_an_archive_whose_headers_lie(kind: bytes, size: int, tmp_path: Path) -> None:
    """Of 4 EB, which would be waited for; or before itself, without end."""
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, size
    first = tarfile.TarInfo("b").tobuf()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(first + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    assert "a.tar.gz is not a whole tar.gz archive" in outcome(tmp_path / "a.tar.gz")


def test_what_is_not_cifar10(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert not any(is_cifar10(path) for path in (tmp_path, tmp_path / "a.txt", tmp_path / "nowhere"))


def test_real_images(folder: Path) -> None:
    given = os.environ.get("FASTSELFIE_DATA")
    if given is None:
        pytest.skip("FASTSELFIE_DATA is not set: a folder with cifar10_jpeg.npz")
    image_module = pytest.importorskip("PIL.Image")
    with np.load(Path(given) / "cifar10_jpeg.npz") as stored:
        jpegs, offsets, labels = (stored[f"test_{part}"] for part in ("jpeg", "offsets", "labels"))
    pieces = [jpegs[offsets[i] : offsets[i + 1]].tobytes() for i in range(20)]
    pictures = np.stack([np.asarray(image_module.open(io.BytesIO(piece)).convert("RGB")) for piece in pieces])
    rows = np.concatenate([pictures[..., channel].reshape(20, 1024) for channel in range(3)], axis=1)
    contents = {b"data": rows, b"labels": labels[:20].astype(int).tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(contents, 2))
    test = read_cifar10(folder).test
    np.testing.assert_array_equal(test.images_SHW3, pictures)
    np.testing.assert_array_equal(test.labels_S, labels[:20])
