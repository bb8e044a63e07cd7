"""CIFAR-10 as published: the folder ``cifar-10-batches-py``, or its tar.gz read without unpacking.

A batch is a pickled dictionary: ``data`` (n, 3072) uint8, a row an image, all red then all green then all blue; and
``labels``, n integers. The downsampled ImageNet uses the same layout.

Shapes: S images, P = 3 * 32 * 32 numbers an image, H = W = 32, channels last.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.safe_pickle import load_arrays
from fastselfie.pipelines.source import ResidentSource, ResidentSplit

SIZE = 32
_FOLDER = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"
_META = "batches.meta"
_CLASSES: tuple[str, ...] = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class PickledBatch:
    """One file's images as they lie in it.

    Attributes:
        rows_SP: uint8 (S, 3072), channel by channel.
        labels_S: int64 (S,), from 0.
    """

    rows_SP: NDArray[np.uint8]
    labels_S: NDArray[np.int64]


def read_batch(file: BinaryIO, name: str, classes: int, first_label: int = 0) -> PickledBatch:
    """Reads one batch and checks all of it.

    Args:
        classes: how many there are; labels in the file lie in [first_label, first_label + classes).

    Raises:
        UserError: the file is damaged or not such a batch.
    """
    contents = load_arrays(file, name)
    for key in ("data", "labels"):
        if key not in contents:
            raise UserError(f"{name} is not a batch of images: it has no {key!r}; download it again")
    data = contents["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIZE**2:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise UserError(
            f"{name}: 'data' is {found} and should be uint8 (n, {3 * SIZE**2}), images of {SIZE}x{SIZE} pixels; "
            "give the batches of that size, or download the file again"
        )
    labels_S = _labels(contents["labels"], name, classes, first_label)
    if len(labels_S) != len(data):
        raise UserError(f"{name}: {len(data)} images but {len(labels_S)} labels; download it again")
    if not len(data):
        raise UserError(f"{name} has no images; download it again")
    return PickledBatch(rows_SP=data, labels_S=labels_S)


def _labels(values: object, name: str, classes: int, first_label: int) -> NDArray[np.int64]:
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    last_label = first_label + classes - 1
    if not isinstance(values, list) or not all(type(v) is int and first_label <= v <= last_label for v in values):
        raise UserError(
            f"{name}: 'labels' should be a list of whole numbers from {first_label} to {last_label}; download it again"
        )
    return np.array(values, dtype=np.int64) - first_label


def to_split(batches: list[PickledBatch]) -> ResidentSplit:
    """One array of all batches' images, channels last. Empties ``batches``: each is freed as soon as it is copied, so
    that ImageNet is not in memory twice."""
    total = sum(len(batch.labels_S) for batch in batches)
    images_SHW3 = np.empty((total, SIZE, SIZE, 3), dtype=np.uint8)
    labels_S = np.empty(total, dtype=np.int64)
    start = 0
    while batches:
        batch = batches.pop(0)
        stop = start + len(batch.labels_S)
        images_SHW3[start:stop] = batch.rows_SP.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
        labels_S[start:stop] = batch.labels_S
        start = stop
    return ResidentSplit(images_SHW3=images_SHW3, labels_S=labels_S)


def is_cifar10(path: Path) -> bool:
    """Whether `read_cifar10` is the reader for ``path``; the files may still be damaged or missing."""
    if path.is_file():
        return path.name.endswith((".tar.gz", ".tgz"))
    return (path / _FOLDER).is_dir() or any((path / name).exists() for name in (*_TRAIN, _TEST))


def read_cifar10(path: Path) -> ResidentSource:
    """CIFAR-10, whole in memory (180 MB).

    Args:
        path: ``cifar-10-batches-py``, the folder around it, or the official tar.gz.

    Raises:
        UserError: a batch is missing, damaged or not CIFAR-10's; the message names it.
    """
    batches: dict[str, PickledBatch] = {}
    classes = _CLASSES
    for base, name, file in _members(path):
        if base == _META:
            classes = _class_names(file, name)
        else:
            batches[base] = read_batch(file, name, len(_CLASSES))
    for base in (*_TRAIN, _TEST):
        if base not in batches:
            raise UserError(f"{path} has no {_FOLDER}/{base}: it is incomplete; download CIFAR-10 again")
    train = to_split([batches.pop(base) for base in _TRAIN])
    return ResidentSource(name="cifar10", train=train, test=to_split([batches.pop(_TEST)]), classes=classes)


def _members(path: Path) -> Iterator[tuple[str, str, BinaryIO]]:
    """CIFAR-10's files: base name, name for messages, and the file, open until the next is asked for."""
    wanted = (*_TRAIN, _TEST, _META)
    if path.is_file():
        yield from _archive_members(path, wanted)
        return
    folder = path / _FOLDER if (path / _FOLDER).is_dir() else path
    for base in wanted:
        if (folder / base).exists():
            try:
                file = (folder / base).open("rb")
            except OSError as error:
                raise UserError(f"{folder / base} cannot be opened ({error.strerror}): check its permissions") from None
            with file:
                yield base, str(folder / base), file


def _archive_members(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, str, BinaryIO]]:
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if archive.offset <= member.offset:  # where the next one is looked for: there would be no end
                    raise tarfile.ReadError(f"a member that ends before byte {member.offset}, where it begins")
                place = PurePosixPath(member.name)
                if not member.isfile() or place.parent.name != _FOLDER or place.name not in wanted:
                    continue
                file = archive.extractfile(member)
                assert file is not None  # it is a regular file
                yield place.name, f"{path}:{place}", file  # type: ignore[misc]  # IO[bytes] is a BinaryIO here
            while stream.read(1 << 20):  # gzip's checksum stands at the end, where tar has long stopped reading
                pass
    except Exception as error:  # of a damaged header tarfile reads numbers and lengths as they come
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is not a whole tar.gz archive ({reason}): download CIFAR-10 again") from None


def _class_names(file: BinaryIO, name: str) -> tuple[str, ...]:
    names = load_arrays(file, name).get("label_names")
    if not isinstance(names, list) or len(names) != len(_CLASSES):
        raise UserError(f"{name}: 'label_names' should be a list of {len(_CLASSES)} names; download it again")
    texts = tuple(text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in names)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name}: 'label_names' holds something other than names; download it again")
    return texts
