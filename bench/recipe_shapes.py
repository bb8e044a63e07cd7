"""The sizes that a recipe gives to the operations around the trunk.

Letters: B images, H pixels a side, P pixels a side of a patch, N patches an image of which n are visible and m masked,
D features, h positions a side of the trunk's last map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastselfie.config import ModelConfig
from fastselfie.models.resnet import trunk
from fastselfie.recipes import recipe


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one batch of pretraining. ``resident``: images lie on the device and are cropped and mirrored there."""

    recipe: str
    keep: float
    B: int
    H: int
    P: int
    N: int
    n: int
    D: int
    h: int
    resident: bool
    pad: int
    pad_mode: Literal["zero", "reflect"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def m(self) -> int:
        """Masked patches an image."""
        return self.N - self.n

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.H // self.P


def shape_of(name: str, *, keep: float = 0.75, batch: int | None = None) -> Shape:
    """The shape of a recipe's pretraining, of its own batch size when not given."""
    config = replace(recipe(name).pretrain, keep=keep)
    resident = config.crop == "pad"
    return Shape(
        recipe=name, keep=keep, B=batch or config.batch_size, H=config.image_size, P=config.patch, N=config.patches,
        n=config.visible, D=config.features, h=_map_side(config.patch, config.width), resident=resident,
        pad=config.pad if resident else 0, pad_mode=config.pad_mode, mean=config.mean, std=config.std,
    )  # fmt: skip


@cache
def _map_side(patch: int, width: float) -> int:
    """Asked of the trunk itself, on tensors without values."""
    with FakeTensorMode():
        network = trunk(ModelConfig(image_size=2 * patch, patch=patch, width=width))
        return network.forward_map(torch.empty(1, 3, patch, patch)).shape[-1]
