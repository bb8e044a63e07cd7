"""Batch norm in training with the ReLU after it, on bf16 maps of a CPU, where memory is what such passes wait for.

Forward reads the map twice and writes once; backward reads the gradient and the map twice and writes once, for which it
computes the ReLU's mask anew and adds what the residual path brings. Arithmetic is fp32. A block's sums are fp32 too,
of what lies around its first row, and blocks are combined in fp64, always in the same order: neither a mean far from 0
nor the number of threads matters.

Shapes: M rows of C channels, as the positions of channels-last maps lie in memory; K blocks of ROWS rows. The 4 of
affine_4C: mean, biased variance, slope and offset; the normalised map is slope * x + offset.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor

from fastselfie.kernels.cpu.threads import barrier, team, thread, threads, to_bf16, to_fp32
from fastselfie.kernels.operator import operator

ROWS = 256
_MEAN, _VARIANCE, _SLOPE, _OFFSET = range(4)

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
def _differentiate(g_MC, x_MC, residual_MC, adds, affine_4C, correction_2C, start, stop, gx_MC):
    """``correction_2C``: row 0 is subtracted once per unit of x - mean (through the variance), row 1 as a constant
    (through the mean).
    """
    for m in range(start, stop):
        for c in range(x_MC.shape[1]):
            x = _wide(x_MC[m, c])
            g = _through_relu(_wide(g_MC[m, c]), x, affine_4C, c)
            gx = affine_4C[_SLOPE, c] * g - correction_2C[0, c] * (x - affine_4C[_MEAN, c]) - correction_2C[1, c]
            gx_MC[m, c] = _rounded(gx + _wide(residual_MC[m, c]) if adds else gx)


@_loop
def _moments(x_MC, sums_K2C, c):
    """A channel's mean and biased variance."""
    M, K = x_MC.shape[0], sums_K2C.shape[0]
    total = 0.0
    for k in range(K):
        total += min(ROWS, M - k * ROWS) * np.float64(_wide(x_MC[k * ROWS, c])) + sums_K2C[k, 0, c]
    mean, squares = total / M, 0.0
    for k in range(K):
        rows, away = min(ROWS, M - k * ROWS), np.float64(sums_K2C[k, 0, c])
        distance = _wide(x_MC[k * ROWS, c]) + away / rows - mean
        squares += sums_K2C[k, 1, c] - away * away / rows + rows * distance * distance
    return mean, squares / M


@team
def _forward(arguments):
    a = carray(arguments, 10)
    M, C, K, eps = a[0], a[1], a[2], np.int64(a[3]).view(np.float64)
    x_MC, y_MC = carray(to_bf16(a[4]), (M, C)), carray(to_bf16(a[5]), (M, C))
    weight_C, bias_C = carray(to_fp32(a[6]), C), carray(to_fp32(a[7]), C)
    affine_4C, sums_K2C = carray(to_fp32(a[8]), (4, C)), carray(to_fp32(a[9]), (K, 2, C))
    t, T = thread(), threads()
    for k in range(K * t // T, K * (t + 1) // T):
        _sum_maps(x_MC, k * ROWS, min(M, (k + 1) * ROWS), sums_K2C[k])
    barrier()
    for c in range(C * t // T, C * (t + 1) // T):
        mean, variance = _moments(x_MC, sums_K2C, c)
        inverse = 1 / math.sqrt(variance + eps)
        slope = weight_C[c] * inverse
        affine_4C[_MEAN, c], affine_4C[_VARIANCE, c] = mean, variance
        affine_4C[_SLOPE, c], affine_4C[_OFFSET, c] = slope, bias_C[c] - mean * slope
    barrier()
    _normalise(x_MC, affine_4C, M * t // T, M * (t + 1) // T, y_MC)


@team
def _backward(arguments):
    a = carray(arguments, 12)
    M, C, K, eps, adds = a[0], a[1], a[2], np.int64(a[3]).view(np.float64), a[4] != 0
    residual_MC, g_MC = carray(to_bf16(a[4]), (M, C)), carray(to_bf16(a[5]), (M, C))
    x_MC, gx_MC = carray(to_bf16(a[6]), (M, C)), carray(to_bf16(a[7]), (M, C))
    affine_4C, gaffine_2C = carray(to_fp32(a[8]), (4, C)), carray(to_fp32(a[9]), (2, C))
    correction_2C, sums_K2C = carray(to_fp32(a[10]), (2, C)), carray(to_fp32(a[11]), (K, 2, C))
    t, T = thread(), threads()
    for k in range(K * t // T, K * (t + 1) // T):
        _sum_gradients(g_MC, x_MC, affine_4C, k * ROWS, min(M, (k + 1) * ROWS), sums_K2C[k])
    barrier()
    for c in range(C * t // T, C * (t + 1) // T):
        total, product = 0.0, 0.0
        for k in range(K):
            total += sums_K2C[k, 0, c]
            product += sums_K2C[k, 1, c]
        slope, inverse = np.float64(affine_4C[_SLOPE, c]), 1 / math.sqrt(affine_4C[_VARIANCE, c] + eps)
        gaffine_2C[0, c], gaffine_2C[1, c] = product * inverse, total
        correction_2C[0, c], correction_2C[1, c] = slope * inverse * inverse * product / M, slope * total / M
    barrier()
    _differentiate(g_MC, x_MC, residual_MC, adds, affine_4C, correction_2C, M * t // T, M * (t + 1) // T, gx_MC)


@operator("norm_relu", "CPU")
def forward(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Batch norm with the map's own statistics, then ReLU: bf16 (B, C, h, w) and fp32 weights to bf16 (B, C, h, w),
    channels-last, and affine_4C.

    Raises:
        RuntimeError: the map is empty.
    """
    if not x.numel():
        raise RuntimeError(f"norm: no statistics of maps of shape {' x '.join(map(str, x.shape))}")
    (M, C, K), x = _sizes(x), _laid_out(x)
    y, affine_4C, sums_K2C = torch.empty_like(x), weight_C.new_empty(4, C), weight_C.new_empty(K, 2, C)
    _forward(M, C, K, eps, x, y, weight_C.contiguous(), bias_C.contiguous(), affine_4C, sums_K2C)
    return y, affine_4C


@operator("norm_relu_backward", "CPU")
def backward(g: Tensor, x: Tensor, residual: Tensor | None, affine_4C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x, and of weight and bias as fp32 (2, C).

    Args:
        g: the gradient of what `forward` gave for ``x``. residual: what else comes to x's gradient.
    """
    (M, C, K), g, x = _sizes(x), _laid_out(g), _laid_out(x)
    residual = None if residual is None else _laid_out(residual)
    gx, gaffine_2C, work = torch.empty_like(x), affine_4C.new_empty(2, C), affine_4C.new_empty(1 + K, 2, C)
    _backward(M, C, K, eps, 0 if residual is None else residual, g, x, gx, affine_4C, gaffine_2C, work[0], work[1:])
    return gx, gaffine_2C


@torch.library.register_fake("fastselfie::norm_relu")
def _(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_laid_out(x)), weight_C.new_empty(4, x.shape[1])


@torch.library.register_fake("fastselfie::norm_relu_backward")
def _(g: Tensor, x: Tensor, residual: Tensor | None, affine_4C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_laid_out(x)), affine_4C.new_empty(2, x.shape[1])


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """M, C and K."""
    C = x.shape[1]
    M = x.numel() // C
    return M, C, -(-M // ROWS)


def _laid_out(maps: Tensor) -> Tensor:
    """As the kernels read them; autograd gives gradients in any strides, such as a mean's, which are 0."""
    return maps.contiguous(memory_format=torch.channels_last)
