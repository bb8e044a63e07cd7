"""Convolutions as matrix products where that is the same mathematics and faster. Weights and their names are Conv2d's.

Shapes: B maps, C input and O output channels, h x w positions. Maps are channels-last, so a position's channels lie
together and the rows of the products below are views.
"""

from __future__ import annotations

from itertools import product
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastselfie.kernels import small_maps
from fastselfie.models.compiled import in_dtype


class Conv1x1(nn.Conv2d):
    """1x1 convolution without bias as a product over positions. A stride picks positions first."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, h, w) to (B, O, h / stride, w / stride), plus ``residual`` of that shape."""
        step = self.stride[0]
        return self.multiply(input[:, :, ::step, ::step], residual)

    def multiply(self, picked: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product of the positions that the stride picks: (B, C, h, w) to (B, O, h, w), plus ``residual``."""
        B, C, h, w = picked.shape
        # Rows: of what a stride picked, linear() makes a product for every B * h where it is to have no gradient.
        rows_RC = picked.permute(0, 2, 3, 1).reshape(B * h * w, C)
        y_BhwO = F.linear(rows_RC, self.weight.flatten(1)).view(B, h, w, self.out_channels)
        if residual is not None:
            y_BhwO = y_BhwO.add_(residual.permute(0, 2, 3, 1))  # in place: the product is still in the cache
        return y_BhwO.permute(0, 3, 1, 2)


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
        if _gathering_wins(input, self.stride[0]):
            y: Tensor = SmallMapConvolution.apply(input, self.weight, self.stride[0], _product_dtype(input))
            return y
        if self.stride[0] != 1 or input.shape[2:] != (2, 2):
            return F.conv2d(input, self.weight, stride=self.stride, padding=1)
        B, C = input.shape[:2]
        x_B4C = input.permute(0, 2, 3, 1).reshape(B, 4 * C)
        y_B4O = F.linear(x_B4C, Dense2x2.apply(self.weight, _product_dtype(input)))
        return y_B4O.view(B, 2, 2, self.out_channels).permute(0, 3, 1, 2)


class Dense2x2(torch.autograd.Function):
    """The matrix that a padded 3x3 kernel is on a 2x2 map, (4O, 4C) in ``dtype``: positions row by row and outermost.

    Output position (i, j) reads input position (k, l) through the kernel's entry (k - i + 1, l - j + 1). Slices and
    their gradients as autograd has them would fill and copy the kernel's gradient many times over, and torch.compile
    makes a term of each way through such copies.
    """

    @staticmethod
    def forward(ctx: Any, weight_OC33: Tensor, dtype: torch.dtype) -> Tensor:
        O, C = weight_OC33.shape[:2]
        ctx.like = weight_OC33.shape, weight_OC33.dtype
        weight_O33C = weight_OC33.permute(0, 2, 3, 1).to(dtype)
        seen = [weight_O33C[:, 1 - i : 3 - i, 1 - j : 3 - j] for i, j in product((0, 1), (0, 1))]
        return torch.stack(seen).view(4 * O, 4 * C)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (O, C, _, _), dtype = ctx.like
        dense = gradients[0].reshape(2, 2, O, 2, 2, C).to(dtype)
        # The pairs of positions that an entry connects, first along rows, then along columns.
        rows = dense[1, :, :, 0], dense[0, :, :, 0] + dense[1, :, :, 1], dense[0, :, :, 1]
        entries = [entry for row in rows for entry in (row[1, :, 0], row[0, :, 0] + row[1, :, 1], row[0, :, 1])]
        return torch.stack(entries, dim=1).view(O, 3, 3, C).permute(0, 3, 1, 2), None


def dense_2x2(weight_OC33: Tensor) -> Tensor:
    """`Dense2x2` in the kernel's own dtype."""
    dense: Tensor = Dense2x2.apply(weight_OC33, weight_OC33.dtype)
    return dense


def channels_last(network: nn.Module) -> None:
    """Lay the kernels of a network's convolutions out for channels-last maps, in place.

    Not 1x1 ones: they are matrices, and gradients come back in a matrix's strides.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, Conv1x1):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class SmallMapConvolution(torch.autograd.Function):
    """(B, C, h, w) and (O, C, 3, 3) to (B, O, h', w'), padding 1, in ``dtype``, with the gradients of
    `fastselfie.kernels.small_maps`. The forward pass is oneDNN's: leaving out zeros gains nothing there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
        ctx.stride, ctx.dtypes = stride, (x.dtype, weight.dtype)
        x, weight = in_dtype(x, dtype), in_dtype(weight, dtype)
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, weight), (g,), arithmetic = ctx.saved_tensors, gradients, _small_maps()
        gx = gweight = None
        if ctx.needs_input_grad[0]:
            gx = in_dtype(arithmetic.input_gradient(g, weight, *x.shape[2:], ctx.stride), ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            gweight = in_dtype(arithmetic.weight_gradient(g, x, ctx.stride), ctx.dtypes[1])
        return gx, gweight, None, None


def _small_maps() -> ModuleType:
    """`fastselfie.kernels.small_maps`, for a graph as operators."""
    if not torch.compiler.is_compiling():
        return small_maps
    from fastselfie.kernels import small_map_operators  # it brings torch.compile

    return small_map_operators


def _gathering_wins(x: Tensor, stride: int) -> bool:
    """Whether `SmallMapConvolution` is measured to be faster than oneDNN: forward and backward of 512 maps on an AMD
    EPYC with AVX-512 took 0.6 of the time from 4x4 to 2x2 in bf16 and in fp32, 0.8 and 1.1 from 8x8 to 4x4."""
    if x.device.type != "cpu" or stride != 2:
        return False
    return x.shape[2:] == (4, 4) or (x.shape[2:] == (8, 8) and _product_dtype(x) == torch.bfloat16)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which autocast would multiply ``x``: casting the small kernel beats casting the dense matrix."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
