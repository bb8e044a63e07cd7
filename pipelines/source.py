"""What a source gives: two splits, of small images in memory or of files on disk.

Shapes: S images, H = W pixels a side, channels last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.image_bytes import read_image_bytes

_COMPARED, _COMPARED_FILES = 256, 8  # images and files of a split whose content is part of its fingerprint


@dataclass(frozen=True, kw_only=True)
class Split:
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


@dataclass(frozen=True, kw_only=True)
class Files:
    """One part of a data set as JPEG or PNG files.

    Attributes:
        root: the folder that ``names``, S of them, are relative to.
        labels_S: int64 (S,), each in [0, number of classes); all 0 where there are no classes.
    """

    root: Path
    names: tuple[str, ...]
    labels_S: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Where file ``index`` lies."""
        return self.root / self.names[index]

    def identity(self) -> Iterable[bytes]:
        """What tells it from other data: all names and labels, and a few whole files spread over it.

        A few alone: a run that a damaged file ended is to go on once a good one is in its place.

        Raises:
            UserError: one of the few cannot be read, or is no image as far as its ends tell.
        """
        yield b"\0".join(os.fsencode(name) for name in self.names)
        yield self.labels_S.tobytes()
        for index in range(0, len(self), -(-len(self) // _COMPARED_FILES)):
            yield read_image_bytes(self.path(index))


AnySplit: TypeAlias = Split | Files


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: ``train`` is trained on, ``test`` only ever evaluated on.

    Attributes:
        test: None where the data set has none. classes: their names; empty where images have no labels.
    """

    name: str
    train: AnySplit
    test: AnySplit | None
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """A short checksum: is this the same data again?

        Raises:
            UserError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for part in split.identity() if split is not None else ():
                digest.update(part)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class ResidentSource(Source):
    """A data set of small images, whole in memory and with a test split."""

    train: Split
    test: Split
