"""What a source of small images gives: arrays in memory, split into train and test.

Shapes: S images, H = W pixels a side, channels last.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: `train` is trained on, `test` only ever evaluated on."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """A short checksum of all labels and of 256 images spread over each split: is this the same data again?"""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(str(split.images_SHW3.shape).encode())
            digest.update(split.labels_S.tobytes())
            digest.update(split.images_SHW3[:: max(len(split) // 256, 1)].tobytes())
        return digest.hexdigest()[:16]
