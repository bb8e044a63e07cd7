"""What a task asks of a pipeline, and what it gets: a view of images, and a batch of views.

Shapes: B images, S resident images, H pixels a side, G patches a side, P pixels a side of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastselfie.kernels import patch_batch


@dataclass(frozen=True, kw_only=True)
class View:
    """How an image is looked at.

    Attributes:
        size: pixels a side, H. pad: pixels of padding a side before a random crop back to H; 0 for no crop.
        pad_mode: black or reflected padding. flip: mirror at random.
    """

    size: int
    pad: int = 0
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Views of B images as a description: pixels stay uint8 until `patches` is called, in one pass over them.

    Attributes:
        pixels: uint8, as `patch_batch` takes them. rows_B, corner_B2, flip_B: likewise, or None.
        epoch_B, sample_B: int64 (B,), the keys of every random choice about a sample.
        labels_B: int64 (B,).
    """

    view: View
    pixels: Tensor
    epoch_B: Tensor
    sample_B: Tensor
    labels_B: Tensor
    rows_B: Tensor | None = None
    corner_B2: Tensor | None = None
    flip_B: Tensor | None = None

    def patches(
        self, *, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype, places_BN: Tensor | None = None
    ) -> Tensor:
        """The trunk's input, (B * N, 3, P, P) channels-last; see `fastselfie.kernels.patch_batch`."""
        return patch_batch(
            self.pixels, patch=patch, mean=mean, std=std, dtype=dtype, places_BN=places_BN, rows_B=self.rows_B,
            corner_B2=self.corner_B2, flip_B=self.flip_B, pad=self.view.pad, pad_mode=self.view.pad_mode,
        )  # fmt: skip
