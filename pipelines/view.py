"""What a task asks of a pipeline, and what it gets: a view of images, and a batch of views.

Shapes: B images, S resident images, H pixels a side, G patches a side, P pixels a side of a patch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastselfie.config import RunConfig
from fastselfie.kernels import patch_batch
from fastselfie.pipelines.refusal import Refused


@dataclass(frozen=True, kw_only=True)
class View:
    """How an image is looked at.

    Attributes:
        size: pixels a side, H. grid: patches a side, G, that files are handed out in; divides H.
        crop: ``pad``: the whole image, or of a file its centre, and where ``pad`` is above 0 a random crop of that.
            ``resized``: a random resized crop.
        min_area: smallest share of the area that a random resized crop takes.
        pad: pixels of padding a side before a random crop back to H; 0 for no crop.
        pad_mode: black or reflected padding. flip: mirror at random.
    """

    size: int
    grid: int = 1
    crop: Literal["pad", "resized"] = "pad"
    min_area: float = 0.08
    pad: int = 0
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False

    @classmethod
    def of(cls, config: RunConfig, grid: int) -> View:
        """The view to train on that a configuration asks for."""
        pad = config.pad if config.crop == "pad" else 0
        return cls(
            size=config.image_size, grid=grid, crop=config.crop, min_area=config.min_area, pad=pad,
            pad_mode=config.pad_mode, flip=True,
        )  # fmt: skip

    def plain(self) -> View:
        """The same without anything random: what evaluations see."""
        return dataclasses.replace(self, crop="pad", pad=0, flip=False)

    @property
    def shorter_side(self) -> int:
        """Pixels to which a file's shorter side is resized before its centre is cut out: 256 where H = 224."""
        return math.floor(self.size * 256 / 224 + 0.5)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Views of B images as a description: pixels stay uint8 until `patches` is called, in one pass over them.

    Attributes:
        pixels: uint8, as `patch_batch` takes them. rows_B, corner_B2, flip_B: likewise, or None.
        epoch_B, sample_B: int64 (B,), the keys of every random choice about a sample.
        labels_B: int64 (B,).
        entry: where in the stream of epochs the batch begins; None for images in order, which belong to no step.
        refused: images that could not be used. In a batch of the stream another image stands in the place of each, with
            the label of its own; in a batch to evaluate on they are missing.
    """

    view: View
    pixels: Tensor
    epoch_B: Tensor
    sample_B: Tensor
    labels_B: Tensor
    rows_B: Tensor | None = None
    corner_B2: Tensor | None = None
    flip_B: Tensor | None = None
    entry: int | None = None
    refused: tuple[Refused, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether `patches` is to crop or flip."""
        return self.corner_B2 is not None or self.flip_B is not None

    def images(self) -> Tensor:
        """The pixels of a view that is not cropped or flipped later, in `patches`: uint8 (B, H, H, 3)."""
        assert not self.moves, "what is cropped or flipped later shows in `patches` alone"
        pixels = self.pixels if self.rows_B is None else self.pixels[self.rows_B]
        return pixels.reshape(len(pixels), self.view.size, self.view.size, 3)

    def patches(
        self, *, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype, places_BN: Tensor | None = None
    ) -> Tensor:
        """The trunk's input, (B * N, 3, P, P) channels-last; see `fastselfie.kernels.patch_batch`."""
        return patch_batch(
            self.pixels, patch=patch, mean=mean, std=std, dtype=dtype, places_BN=places_BN, rows_B=self.rows_B,
            corner_B2=self.corner_B2, flip_B=self.flip_B, pad=self.view.pad, pad_mode=self.view.pad_mode,
        )  # fmt: skip
