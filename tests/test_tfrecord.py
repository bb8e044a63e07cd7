"""TFRecord shards, framed by hand from the format's definition and with an Example written byte by byte."""

from __future__ import annotations

import os
import pickle
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.tfrecord import is_tfrecord, read_tfrecord

pytest.importorskip("google_crc32c", reason="google-crc32c is not installed")
pytest.importorskip("google.protobuf", reason="protobuf is not installed")
SYNSETS = ("n01440764", "n01443537", "n01484850")


def crc32c(data: bytes) -> int:
    """Bit by bit, with Castagnoli's polynomial (RFC 3720, appendix B.4)."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % (1 << 32))


def frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(number: int) -> bytes:
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, data: bytes) -> bytes:
    """Of protobuf's wire type 2: bytes, strings, messages and packed numbers."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def an_example(features: dict[str, bytes | int | float]) -> bytes:
    """feature.proto: Features 1, its map entries 1 with key 1 and value 2; bytes 1, floats 2, integers 3."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            kind = field(1, field(1, value))
        elif isinstance(value, float):
            kind = field(2, field(1, struct.pack("<f", value)))
        else:
            kind = field(3, field(1, varint(value % (1 << 64))))
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def photograph(image: bytes, label: int) -> bytes:
    """An Example as TensorFlow's script for ImageNet writes it."""
    return an_example({
        "image/height": 4, "image/class/label": label, "image/colorspace": b"RGB", "image/encoded": image,
        "image/class/synset": SYNSETS[label - 1].encode(), "image/object/bbox/xmin": 0.5,
    })  # fmt: skip


def shard(path: Path, *examples: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(frame, examples)))


def images(seed: int, count: int) -> list[bytes]:
    """Random bytes of random lengths: nothing here looks into images."""
    generator = np.random.default_rng(seed)
    return [generator.bytes(int(generator.integers(1, 900))) for _ in range(count)]


TRAIN, VALIDATION = images(0, 7), images(1, 3)
LABELS = (3, 1, 2, 3, 1, 1, 2)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Two shards to train on, one of them with no record in it between, and one to test on."""
    folder = tmp_path / "imagenet"
    examples = [photograph(image, label) for image, label in zip(TRAIN, LABELS, strict=True)]
    shard(folder / "train-00000-of-00003", *examples[:4])
    shard(folder / "train-00001-of-00003")
    shard(folder / "train-00002-of-00003", *examples[4:])
    shard(folder / "validation-00000-of-00001", *(photograph(image, 2) for image in VALIDATION))
    (folder / "LABELS.txt").write_text("not ours")
    return folder


def all_of(split: object) -> list[bytes]:
    assert isinstance(split, EncodedImages)
    return [split.read(index) for index in range(len(split))]


def test_the_checksum_is_the_published_one() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_records_are_read_by_index(imagenet: Path) -> None:
    assert is_tfrecord(imagenet)
    source = read_tfrecord(imagenet, None)
    assert (source.name, source.classes) == ("imagenet", SYNSETS)
    train, test = source.train, source.test
    assert isinstance(train, EncodedImages)
    assert all_of(train) == TRAIN
    assert all_of(test) == VALIDATION
    assert (train.labels_S + 1).tolist() == list(LABELS)
    assert test is not None
    assert test.labels_S.tolist() == [1, 1, 1]
    assert train.labels_S.dtype == np.int64
    second = 12 + len(photograph(TRAIN[4], LABELS[4])) + 4 + 12
    assert train.name(5) == f"{imagenet / 'train-00002-of-00003'} at byte {second}"
    assert all_of(pickle.loads(pickle.dumps(train))) == TRAIN


def test_splits_may_lie_in_folders_of_their_own(imagenet: Path) -> None:
    for split in ("train", "validation"):
        (imagenet / split).mkdir()
        for path in imagenet.glob(f"{split}-*"):
            path.rename(imagenet / split / path.name)
    assert is_tfrecord(imagenet)
    assert all_of(read_tfrecord(imagenet, None).test) == VALIDATION


def test_the_index_is_kept_until_a_shard_changes(imagenet: Path, tmp_path: Path) -> None:
    kept, walked = tmp_path / "kept", list[tuple[int, int]]()

    def opened() -> tuple[str, list[bytes], NDArray[np.int64]]:
        source = read_tfrecord(imagenet, kept, lambda done, total: walked.append((done, total)))
        assert isinstance(source.train, EncodedImages)
        return source.fingerprint(), all_of(source.train), source.train.labels_S

    before, _, labels_S = opened()
    total = sum(path.stat().st_size for path in imagenet.glob("*-of-*"))
    assert (len(walked), walked[-1]) == (4, (total, total))
    walked.clear()
    again, read, again_S = opened()
    assert walked == []  # no shard was walked through
    assert (again, read, again_S.tolist()) == (before, TRAIN, labels_S.tolist())
    path = imagenet / "train-00002-of-00003"
    shard(path, *(photograph(image, 1) for image in TRAIN[4:]))  # of the same size: only its time tells
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    after, read, labels_S = opened()
    assert walked != []
    assert read == TRAIN
    assert labels_S.tolist() == [2, 0, 1, 2, 0, 0, 0]
    assert after != before


def test_a_damaged_record_is_one_bad_image(imagenet: Path) -> None:
    path = imagenet / "train-00000-of-00003"
    data = bytearray(path.read_bytes())
    at = bytes(data).index(TRAIN[1])
    data[at] ^= 1
    path.write_bytes(data)
    train = read_tfrecord(imagenet, None).train
    assert isinstance(train, EncodedImages)
    with pytest.raises(BadImage, match=r"^does not match its checksum$"):
        train.read(1)
    assert [train.read(index) for index in (0, 2, 3, 4, 5, 6)] == [*TRAIN[:1], *TRAIN[2:]]
    assert train.labels_S.tolist() == [2, 0, 1, 2, 0, 0, 1]


def test_a_shard_cut_off_after_it_was_opened(imagenet: Path) -> None:
    train = read_tfrecord(imagenet, None).train
    assert isinstance(train, EncodedImages)
    path = imagenet / "train-00002-of-00003"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(BadImage, match=r"^is cut off$"):
        train.read(6)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        train.read(6)


def test_labels_from_0_on_and_names_in_text(tmp_path: Path) -> None:
    texts = ("a goldfish", "a cock")
    examples = [
        an_example({"image/encoded": b"x", "image/class/label": label, "image/class/text": texts[label].encode()})
        for label in (1, 0, 1)
    ]
    shard(tmp_path / "train-00000-of-00001", *examples)
    source = read_tfrecord(tmp_path, None)
    assert source.classes == texts
    assert isinstance(source.train, EncodedImages)
    assert source.train.labels_S.tolist() == [1, 0, 1]
    assert source.test is None


def test_a_class_without_a_name_has_its_number(tmp_path: Path) -> None:
    examples = [an_example({"image/encoded": b"x", "image/class/label": label}) for label in (1, 3)]
    shard(tmp_path / "train-00000-of-00001", *examples)
    assert read_tfrecord(tmp_path, None).classes == ("1", "2", "3")


def test_images_without_labels(tmp_path: Path) -> None:
    shard(tmp_path / "train-00000-of-00001", an_example({"image/encoded": b"x"}), an_example({"image/class/label": 1}))
    source = read_tfrecord(tmp_path, None)
    assert isinstance(source.train, EncodedImages)
    assert (source.classes, source.train.labels_S.tolist()) == ((), [0, 0])
    assert source.train.read(0) == b"x"
    with pytest.raises(BadImage, match="has no image/encoded"):
        source.train.read(1)


LENGTH, TERABYTE = (struct.pack("<Q", length) for length in (5, 1 << 40))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (frame(b"")[:-1], "is cut off"),
        (frame(b"") + b"123", "is cut off"),
        (LENGTH + masked(LENGTH) + b"123", "is cut off"),
        (frame(b"") + b"no TFRecord", "is cut off"),
        (frame(b"") + b"no TFRecord file at all", "is damaged at byte 16, or no TFRecord file"),
        (frame(b"\xff\xff"), "the record at byte 12 is no tf.train.Example"),
        (frame(an_example({"image/class/label": -3})), "the record at byte 12 has label -3"),
        (frame(an_example({"image/class/label": 2**31 - 1})), "the record at byte 12 has label 2147483647"),
        (TERABYTE + masked(TERABYTE) + b"123", "is cut off"),
        (b"", "hold no record"),
    ],
)
def test_a_shard_that_is_none(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001").write_bytes(data)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        read_tfrecord(tmp_path, None)
    assert "train-00000-of-00001" in str(caught.value)


def test_a_missing_shard_is_named(imagenet: Path) -> None:
    (imagenet / "train-00001-of-00003").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00003 is missing"):
        read_tfrecord(imagenet, None)


@pytest.mark.parametrize("name", ["train-00000-of-00001.tar", "train-0-of-1", "trainer-00000-of-00001", "x"])
def test_what_is_no_such_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert not is_tfrecord(tmp_path)
    assert not is_tfrecord(tmp_path / name)


def test_without_the_library(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(UserError, match=r"pip install 'fastselfie\[tfrecord\]'"):
        read_tfrecord(imagenet, None)
