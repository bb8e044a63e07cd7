"""The trunk's stages through the fused bottleneck of `fastselfie.kernels`: the parameters and the mathematics are those
of `fastselfie.models.resnet`, which is its plain twin.

Shapes: M maps, C and O channels, h x w positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fastselfie.kernels.dispatch import fused, fused_trunk
from fastselfie.models.convolution import dense_2x2
from fastselfie.models.statistics import statistics, synchronisation, update

if TYPE_CHECKING:
    from fastselfie.models.resnet import Bottleneck


def runs_fused(maps: Tensor, blocks: Iterable[Bottleneck]) -> bool:
    """Whether the blocks run as kernels on such maps."""
    fits = all(conv.in_channels % 16 == 0 == conv.out_channels % 16 for block in blocks for conv in block.products())
    return fused_trunk(maps.device, maps.dtype, fits=fits)


def forward(blocks: Iterable[Bottleneck], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(M, C, h, w) through the blocks: the last map, (M, O, h', w'), and its `channel_sums`, of this process alone, if
    `patch_tokens` takes the gradient through them on."""
    sums: Tensor | None = None
    for block in blocks:
        x, sums = _block(block, x, sums)
    return x, sums if fused("patch_tokens", x.device, *x.shape[1:]) else None


def _block(block: Bottleneck, x: Tensor, sums_2C: Tensor | None) -> tuple[Tensor, Tensor]:
    from fastselfie.kernels.fused.bottleneck import bottleneck

    norms = block.norm1, block.norm2, block.norm3
    assert len({(norm.eps, norm.training) for norm in norms}) == 1, "the kernels take a block's norms to be alike"
    group, processes = synchronisation(norms[1])
    its = statistics(norms[0], x.detach(), sums_2C)  # what goes through them, the kernels know
    conv2 = block.conv2.weight
    if block.conv2.stride[0] == 1 and x.shape[2:] == (2, 2):
        conv2 = dense_2x2(conv2)[:, :, None, None]  # fp32, and cast where it is multiplied: so its gradient stays wide
    y, sums, *values = bottleneck(
        x, its.values_2D, None if block.training else (_running(norms[1]), _running(norms[2])),
        [(norm.weight, norm.bias) for norm in norms], (block.conv1.weight, conv2, block.conv3.weight),
        None if block.shortcut is None else block.shortcut.weight,
        stride=block.conv2.stride[0], eps=norms[0].eps, processes=processes, group=group,
    )  # fmt: skip
    if block.training:
        positions = x.shape[0] * x.shape[2] * x.shape[3], y.shape[0] * y.shape[2] * y.shape[3]
        for norm, its_values, count in zip(norms[1:], values, positions, strict=True):
            update(norm, its_values[0], its_values[1], count * processes)
    return y, sums


def _running(norm: nn.BatchNorm2d) -> Tensor:
    return torch.stack([cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)])
