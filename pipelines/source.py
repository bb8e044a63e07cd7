"""What a source gives: two splits, of small images in memory or of encoded images read one by one.

Shapes: S images, H = W pixels a side, channels last.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.image_bytes import BadImage, check_bytes
from fastselfie.pipelines.names import Names

MOST_CLASSES = 1_000_000
"""A label above is none: it would stand for that many classes."""
_COMPARED, _PROBES = 256, 8  # images of a split in memory, or of files, whose contents are compared


@dataclass(frozen=True, kw_only=True)
class ResidentSplit:
    """One part of a data set, whole in memory.

    Attributes:
        images_SHW3: uint8 (S, H, W, 3), RGB.
        labels_S: int64 (S,), each in [0, number of classes).
    """

    images_SHW3: NDArray[np.uint8]
    labels_S: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images_SHW3)

    def identity(self) -> Iterable[bytes]:
        """What tells it from other data: all labels, and images spread over it."""
        yield str(self.images_SHW3.shape).encode()
        yield self.labels_S.tobytes()
        yield self.images_SHW3[:: max(len(self) // _COMPARED, 1)].tobytes()


class EncodedImages(ABC):
    """One part of a data set as JPEG or PNG images of any size, by index: files, members of shards, rows of a table.

    Reading is safe from several threads at once, and an object can be pickled.

    Attributes:
        labels_S: int64 (S,), each in [0, number of classes); all 0 where there are no classes. Of shards
            read when it is first asked for: `labels` does with those of a batch, and `len` without any.
        readers: how many reads at once pay; None for as many as there are threads that decode.
        pauses_s: before the second and any further try to read, where the storage failed.
    """

    labels_S: NDArray[np.int64]
    readers: int | None = None
    # A network file system that is busy gets over it.
    pauses_s: tuple[float, ...] = (0.1, 0.5)

    def __len__(self) -> int:
        return len(self.labels_S)

    def labels(self, index_B: Sequence[int]) -> NDArray[np.int64]:
        """The labels of some images: int64 (B,).

        Raises:
            OSError: the storage fails.
        """
        return self.labels_S[np.asarray(index_B, dtype=np.int64)]

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call image ``index`` in a message: its path, or its shard and its name in there."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of image ``index``, not looked into.

        Raises:
            OSError: the storage fails. `fastselfie.pipelines.image_bytes.BadImage`: they are not what was once written.
        """

    @abstractmethod
    def identity(self) -> Iterable[bytes]:
        """What tells it from other data without reading images: names, labels, sizes as far as they are at hand."""


@dataclass(frozen=True, kw_only=True)
class Files(EncodedImages):
    """One part of a data set as JPEG or PNG files.

    Attributes:
        root: the folder that ``names``, S of them, are relative to.
    """

    root: Path
    names: Names
    labels_S: NDArray[np.int64]

    def path(self, index: int) -> Path:
        """Where file ``index`` lies."""
        return self.root / self.names[index]

    def name(self, index: int) -> str:
        """See `EncodedImages.name`."""
        return str(self.path(index))

    def read(self, index: int) -> bytes:
        """See `EncodedImages.read`."""
        with open(self.path(index), "rb", opener=_open_regular) as file:
            return file.read()

    def identity(self) -> Iterable[bytes]:
        """All names and labels."""
        yield from self.names.pieces()
        yield self.labels_S.tobytes()


def _open_regular(path: str, flags: int) -> int:
    """What `open` takes as ``opener``: a pipe would be waited for, until somebody writes to it, and a device may have
    no end.

    Raises:
        BadImage: the file is none, or too large.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    try:
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("is no regular file")
        check_bytes(status.st_size)
    except BadImage:
        os.close(descriptor)
        raise
    return descriptor


class Probes(list[str]):
    """Checksums of a few images. Images get damaged: of the same data some may differ, of other data most do."""


AnySplit: TypeAlias = ResidentSplit | EncodedImages


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: ``train`` is trained on, ``test`` only ever evaluated on.

    Attributes:
        test: None where the data set has none. classes: their names; empty where images have no labels.
        remark: what the user should know of it, a phrase for a message; empty where there is nothing.
    """

    name: str
    train: AnySplit
    test: AnySplit | None
    classes: tuple[str, ...]
    remark: str = ""

    def probes(self) -> Probes:
        """Checksums of the bytes of a few images spread over each part; of images in memory the fingerprint tells."""
        return Probes(
            checksum
            for split in (self.train, self.test)
            if isinstance(split, EncodedImages)
            for checksum in _checksums(split, range(0, len(split), -(-len(split) // _PROBES)))
        )

    def fingerprint(self) -> str:
        """A short checksum: is this the same data again?"""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for part in split.identity() if split is not None else ():
                digest.update(part)
        return digest.hexdigest()[:16]


def _checksums(split: EncodedImages, indices: Iterable[int]) -> list[str]:
    """Of images' bytes. At once where that pays: of remote storage that is silent each takes half a minute."""
    with ThreadPoolExecutor(split.readers or 1, thread_name_prefix="probe") as pool:
        return list(pool.map(lambda index: _checksum(split, index), indices))


def _checksum(split: EncodedImages, index: int) -> str:
    """Of an image's bytes; empty where they cannot be had."""
    try:
        return f"{zlib.crc32(split.read(index)):08x}"
    except (OSError, BadImage):
        return ""


@dataclass(frozen=True, kw_only=True)
class ResidentSource(Source):
    """A data set of small images, whole in memory and with a test split."""

    train: ResidentSplit
    test: ResidentSplit
