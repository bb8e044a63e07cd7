"""What torch.compile is given in place of two of PyTorch's operations: the same mathematics, less memory moved.

Of max-pooling's backward Inductor makes atomic additions into zeros in fp32, in another order each time, and a cast
after them; here every position fetches what is its own. For batch norm and ReLU see `fastselfie.kernels.let_through`.

Shapes: B maps, C channels, H x W positions, h x w of them after pooling.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastselfie.models.statistics import update


def norm_relu(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``relu(norm(x))``, (B, C, H, W), of a norm in training with weights and running statistics, which are updated as
    its own forward would."""
    with torch.no_grad():
        mean_C, var_C = _moments(x)
        update(norm, mean_C, var_C, x.numel() // x.shape[1])
        rstd_C = torch.rsqrt(var_C + norm.eps)
    y: Tensor = _NormRelu.apply(x, norm.weight, norm.bias, mean_C, rstd_C)
    return y


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, (C,). On a CPU from two sums of what positions are away from the first
    maps' mean, so that neither a mean far from 0 nor a single position costs digits: there Inductor's `var_mean`
    divides for every element."""
    x, count = _wide(x), x.numel() // x.shape[1]
    if x.device.type != "cpu":
        var_C, mean_C = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        return mean_C, var_C
    about_C = x[:16].mean(dim=(0, 2, 3))
    away = x - _of(about_C)
    mean_C, square_C = (sums.sum(dim=(0, 2, 3)) / count for sums in (away, away * away))
    return about_C + mean_C, (square_C - mean_C * mean_C).clamp_min(0)


class _NormRelu(torch.autograd.Function):
    """With given statistics, of the map itself: its gradient includes the part through them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, rstd_C: Tensor) -> Tensor:
        slope_C = weight_C * rstd_C
        # Not by way of the slope: what Inductor then makes for a GPU is more than Triton 3.6 can compile.
        offset_C = bias_C - mean_C * rstd_C * weight_C
        ctx.save_for_backward(x, slope_C, offset_C, mean_C, rstd_C)
        return in_dtype((_wide(x) * _of(slope_C) + _of(offset_C)).clamp_min(0), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from fastselfie.kernels.let_through import let_through  # it brings torch.compile's Inductor

        x, slope_C, offset_C, mean_C, rstd_C = ctx.saved_tensors
        deviation, count = _wide(x) - _of(mean_C), x.numel() // x.shape[1]
        dz = let_through(gradients[0], x, slope_C, offset_C)
        dbias_C = dz.sum(dim=(0, 2, 3))
        dweight_C = (dz * deviation).sum(dim=(0, 2, 3)) * rstd_C
        # slope * (dz - mean of dz - xhat * mean of dz * xhat), where xhat = deviation * rstd. A CPU's graph computes
        # what is between _of's parentheses for every element, so nothing there divides.
        through_statistics = _of(dbias_C * (1 / count)) + deviation * _of(dweight_C * rstd_C * (1 / count))
        dx = (dz - through_statistics) * _of(slope_C)
        return in_dtype(dx, x.dtype), dweight_C, dbias_C, None, None


def max_pool(x: Tensor) -> Tensor:
    """Maxima of 3x3 positions, stride 2, padding 1: (B, C, H, W) to (B, C, ceil(H / 2), ceil(W / 2))."""
    y: Tensor = _MaxPool.apply(x)
    return y


class _MaxPool(torch.autograd.Function):
    """Window i is centred on row 2i, so row r is in window r // 2 and, where r is odd, in the next; so with columns.
    Kept is which of its 3x3 positions each window has chosen, row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, chosen = F.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)
        H, W = x.shape[2:]
        row_h, column_w = (2 * torch.arange(side, device=x.device) - 1 for side in y.shape[2:])  # where windows begin
        place = (chosen // W - row_h[:, None]) * 3 + chosen % W - column_w
        ctx.save_for_backward(place.to(torch.int8))
        ctx.sides = H, W
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (place,), (g,) = ctx.saved_tensors, gradients
        along = zip(g.shape[2:], ctx.sides, strict=True)
        rows, columns = ([_windows(*each, following, g.device) for following in (False, True)] for each in along)
        parts = []
        for (i_H, down_H), (j_W, right_W) in product(rows, columns):
            at = slice(None), slice(None), i_H[:, None], j_W
            parts.append(torch.where(place[at] == 3 * down_H[:, None] + right_W, _wide(g[at]), 0.0))
        return in_dtype(parts[0] + parts[1] + parts[2] + parts[3], g.dtype)


def _windows(count: int, side: int, following: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each of ``side`` positions along an axis one of the ``count`` windows that it is in, the first or the
    ``following``, and which of the window's three positions it is; -9 where there is no such window."""
    position = torch.arange(side, dtype=torch.int32, device=device)
    window = (position + following) // 2
    within = position - 2 * window + 1
    if following:
        within = torch.where((within == 0) & (window < count), 0, -9)
    return window.clamp(max=count - 1), within


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, but for x itself: torch 2.11 compiles what is the same tensor as another to gradients of 0."""
    return x if x.dtype == dtype else x.to(dtype)


def _wide(x: Tensor) -> Tensor:
    return in_dtype(x, torch.promote_types(x.dtype, torch.float32))


def _of(values_C: Tensor) -> Tensor:
    """For a map's channels."""
    return values_C[:, None, None]
