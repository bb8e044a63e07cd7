"""Convolutions as matrix products where that is the same mathematics and faster. Weights and their names are Conv2d's.

Shapes: B maps, C input and O output channels, h x w positions. Maps are channels-last, so a position's channels lie
together and the rows of the products below are views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv1x1(nn.Conv2d):
    """1x1 convolution without bias as a product over positions. A stride picks positions first."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) to (B, O, h / stride, w / stride)."""
        step = self.stride[0]
        x_BhwC = input[:, :, ::step, ::step].permute(0, 2, 3, 1)
        return F.linear(x_BhwC, self.weight.flatten(1)).permute(0, 3, 1, 2)


class Conv3x3(nn.Conv2d):
    """3x3 convolution, padding 1, without bias.

    On a 2x2 map every output position sees all four input positions, so the convolution is one dense product
    4C -> 4O: 16 multiply-adds a pair of channels instead of the 36 that a padded convolution spends, most of them on
    zeros. The dense weight is assembled from the 3x3 kernel inside the graph, so gradients reach the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) to (B, O, h / stride, w / stride)."""
        if self.stride[0] != 1 or input.shape[2:] != (2, 2):
            return F.conv2d(input, self.weight, stride=self.stride, padding=1)
        B, C = input.shape[:2]
        x_B4C = input.permute(0, 2, 3, 1).reshape(B, 4 * C)
        y_B4O = F.linear(x_B4C, dense_2x2(self.weight.to(_product_dtype(input))))
        return y_B4O.view(B, 2, 2, self.out_channels).permute(0, 3, 1, 2)


def dense_2x2(weight_OC33: Tensor) -> Tensor:
    """The matrix that a padded 3x3 kernel is on a 2x2 map: (4O, 4C), positions row by row and outermost.

    Output position (i, j) reads input position (k, l) through the kernel's entry (k - i + 1, l - j + 1).
    """
    O, C = weight_OC33.shape[:2]
    taps = [weight_OC33[:, :, 1 - i : 3 - i, 1 - j : 3 - j] for i in (0, 1) for j in (0, 1)]
    return torch.stack(taps).permute(0, 1, 3, 4, 2).reshape(4 * O, 4 * C)


def channels_last(network: nn.Module) -> None:
    """Lay the kernels of a network's convolutions out for channels-last maps, in place.

    Not 1x1 ones: they are matrices, and gradients come back in a matrix's strides.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, Conv1x1):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which autocast would multiply ``x``: casting the small kernel beats casting the dense matrix."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
