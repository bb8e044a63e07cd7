"""Batch norm in training with the ReLU after it, on bf16 maps of a CPU, where memory is what such passes wait for.

Forward reads the map twice and writes once; backward reads the gradient and the map twice and writes once, for which it
computes the ReLU's mask anew and adds what the residual path brings. Arithmetic is fp32. A block's sums are fp32 too,
of what lies around its first row, and blocks are combined in fp64, always in the same order: neither a mean far from 0
nor the number of threads matters.

Shapes: M rows of C channels, as the positions of channels-last maps lie in memory; K blocks of ROWS rows. The 4 of
affine_4C: mean, slope, offset and 1 / deviation; the normalised map is slope * x + offset.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor

from fastselfie.kernels.cpu.threads import barrier, team, thread, threads, to_bf16, to_fp32

ROWS = 256
_MEAN, _SLOPE, _OFFSET, _INVERSE = range(4)

_loop = numba.njit(error_model="numpy", fastmath={"contract"})
_within = numba.njit(inline="always")


@_within
def _wide(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@_within
def _rounded(value):
    """fp32 to the nearest bf16, ties to even; what is not a number stays that."""
    bits = np.float32(value).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(nearest) if value == value else np.uint16(0x7FC0)


@_within
def _through_relu(g, x, affine_4C, c):
    return np.float32(0) if affine_4C[_SLOPE, c] * x + affine_4C[_OFFSET, c] <= 0 else g


@_loop
def _sum_maps(x_MC, start, stop, sums_2C):
    """A block's sums of x - its first row, and of the squares of that."""
    sums_2C[:] = 0
    for m in range(start + 1, stop):
        for c in range(x_MC.shape[1]):
            away = _wide(x_MC[m, c]) - _wide(x_MC[start, c])
            sums_2C[0, c] += away
            sums_2C[1, c] += away * away


@_loop
def _sum_gradients(g_MC, x_MC, affine_4C, start, stop, sums_2C):
    """A block's sums of the gradient that comes through the ReLU, and of its products with x - mean."""
    sums_2C[:] = 0
    for m in range(start, stop):
        for c in range(x_MC.shape[1]):
            x = _wide(x_MC[m, c])
            g = _through_relu(_wide(g_MC[m, c]), x, affine_4C, c)
            sums_2C[0, c] += g
            sums_2C[1, c] += g * (x - affine_4C[_MEAN, c])


@_loop
def _normalise(x_MC, affine_4C, start, stop, y_MC):
    for m in range(start, stop):
        for c in range(x_MC.shape[1]):
            y = affine_4C[_SLOPE, c] * _wide(x_MC[m, c]) + affine_4C[_OFFSET, c]
            y_MC[m, c] = _rounded(np.float32(0) if y <= 0 else y)


@_loop
def _differentiate(g_MC, x_MC, residual_MC, adds, affine_4C, pull_2C, start, stop, gx_MC):
    """``pull_2C``: what the batch's variance and mean take from the gradient, a unit of x - mean and as such."""
    for m in range(start, stop):
        for c in range(x_MC.shape[1]):
            x = _wide(x_MC[m, c])
            g = _through_relu(_wide(g_MC[m, c]), x, affine_4C, c)
            gx = affine_4C[_SLOPE, c] * g - pull_2C[0, c] * (x - affine_4C[_MEAN, c]) - pull_2C[1, c]
            gx_MC[m, c] = _rounded(gx + _wide(residual_MC[m, c]) if adds else gx)


@_loop
def _moments(x_MC, sums_K2C, c):
    """A channel's mean, and the sum of squared distances from it."""
    M, K = x_MC.shape[0], sums_K2C.shape[0]
    total = 0.0
    for k in range(K):
        total += min(ROWS, M - k * ROWS) * np.float64(_wide(x_MC[k * ROWS, c])) + sums_K2C[k, 0, c]
    mean, squares = total / M, 0.0
    for k in range(K):
        rows, away = min(ROWS, M - k * ROWS), np.float64(sums_K2C[k, 0, c])
        distance = _wide(x_MC[k * ROWS, c]) + away / rows - mean
        squares += sums_K2C[k, 1, c] - away * away / rows + rows * distance * distance
    return mean, squares


@team
def _forward(arguments):
    a = carray(arguments, 13)
    M, C, K = a[0], a[1], a[2]
    eps, momentum = np.int64(a[3]).view(np.float64), np.int64(a[4]).view(np.float64)
    x_MC, y_MC = carray(to_bf16(a[5]), (M, C)), carray(to_bf16(a[6]), (M, C))
    weight_C, bias_C = carray(to_fp32(a[7]), C), carray(to_fp32(a[8]), C)
    running_mean_C, running_var_C = carray(to_fp32(a[9]), C), carray(to_fp32(a[10]), C)
    affine_4C, sums_K2C = carray(to_fp32(a[11]), (4, C)), carray(to_fp32(a[12]), (K, 2, C))
    t, T = thread(), threads()
    for k in range(K * t // T, K * (t + 1) // T):
        _sum_maps(x_MC, k * ROWS, min(M, (k + 1) * ROWS), sums_K2C[k])
    barrier()
    for c in range(C * t // T, C * (t + 1) // T):
        mean, squares = _moments(x_MC, sums_K2C, c)
        inverse = 1 / math.sqrt(squares / M + eps)
        slope = weight_C[c] * inverse
        affine_4C[_MEAN, c], affine_4C[_SLOPE, c] = mean, slope
        affine_4C[_OFFSET, c], affine_4C[_INVERSE, c] = bias_C[c] - mean * slope, inverse
        running_mean_C[c] += momentum * (mean - running_mean_C[c])
        running_var_C[c] += momentum * (squares / max(M - 1, 1) - running_var_C[c])
    barrier()
    _normalise(x_MC, affine_4C, M * t // T, M * (t + 1) // T, y_MC)


@team
def _backward(arguments):
    a = carray(arguments, 11)
    M, C, K, adds = a[0], a[1], a[2], a[3] != 0
    g_MC, x_MC = carray(to_bf16(a[4]), (M, C)), carray(to_bf16(a[5]), (M, C))
    residual_MC = carray(to_bf16(a[3]), (M, C))
    affine_4C, gx_MC = carray(to_fp32(a[6]), (4, C)), carray(to_bf16(a[7]), (M, C))
    gaffine_2C, pull_2C = carray(to_fp32(a[8]), (2, C)), carray(to_fp32(a[9]), (2, C))
    sums_K2C = carray(to_fp32(a[10]), (K, 2, C))
    t, T = thread(), threads()
    for k in range(K * t // T, K * (t + 1) // T):
        _sum_gradients(g_MC, x_MC, affine_4C, k * ROWS, min(M, (k + 1) * ROWS), sums_K2C[k])
    barrier()
    for c in range(C * t // T, C * (t + 1) // T):
        total, product = 0.0, 0.0
        for k in range(K):
            total += sums_K2C[k, 0, c]
            product += sums_K2C[k, 1, c]
        slope, inverse = np.float64(affine_4C[_SLOPE, c]), np.float64(affine_4C[_INVERSE, c])
        gaffine_2C[0, c], gaffine_2C[1, c] = product * inverse, total
        pull_2C[0, c], pull_2C[1, c] = slope * inverse * inverse * product / M, slope * total / M
    barrier()
    _differentiate(g_MC, x_MC, residual_MC, adds, affine_4C, pull_2C, M * t // T, M * (t + 1) // T, gx_MC)


def forward(
    x: Tensor, weight_C: Tensor, bias_C: Tensor, running: tuple[Tensor, Tensor], momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Normalise with the map's own statistics, then ReLU.

    Args:
        x: bf16 (B, C, h, w), channels-last. running: mean and unbiased variance, fp32 (C,), moved towards the map's.

    Returns:
        What is activated, of x's shape, dtype and strides, and affine_4C, fp32, for `backward`.
    """
    M, C, K = _sizes(x)
    y, affine_4C, sums_K2C = torch.empty_like(x), torch.empty(4, C), torch.empty(K, 2, C)
    _forward(M, C, K, float(eps), float(momentum), x, y, weight_C, bias_C, *running, affine_4C, sums_K2C)
    return y, affine_4C


def backward(g: Tensor, x: Tensor, residual: Tensor | None, affine_4C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias.

    Args:
        g: the gradient of what `forward` activated, of x's shape. x, affine_4C: as `forward` had and gave them.
        residual: what else comes to x's gradient, of its shape.
    """
    M, C, K = _sizes(x)
    g, residual = _laid_out(g), None if residual is None else _laid_out(residual)
    gx, gaffine_2C, pull_2C, sums_K2C = torch.empty_like(x), *(torch.empty(n, C) for n in (2, 2, 2 * K))
    _backward(M, C, K, 0 if residual is None else residual, g, x, affine_4C, gx, gaffine_2C, pull_2C, sums_K2C)
    return gx, gaffine_2C[0], gaffine_2C[1]


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """M, C and K."""
    C = x.shape[1]
    M = x.numel() // C
    return M, C, -(-M // ROWS)


def _laid_out(gradient: Tensor) -> Tensor:
    """As the kernels read it; autograd gives gradients in any strides, such as a mean's, which are 0."""
    return gradient.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
