"""What a source of small images gives: arrays in memory, split into train and test.

Shapes: S images, H = W pixels a side, channels last.
"""

from __future__ import annotations

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
