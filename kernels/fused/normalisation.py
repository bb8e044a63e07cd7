"""Batch norm and ReLU on their own, in Triton: where a map does reach memory normalised, and the last pass backward.

Bytes: `normalise` reads the map and writes one. `normalisation_sums` reads the gradient of the relu and the map;
`normalisation_input` reads both again, and the gradient that goes around, and writes the map's.
Shapes: M maps, C channels, h x w positions; a row is one position's channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.launch import cdiv
from fastselfie.kernels.fused.partial_sums import added_in_fp64
from fastselfie.kernels.operator import operator

_ROWS, _CHANNELS, _WARPS = 64, 64, 4
_PROGRAMS = 1024  # of the sums at most: eight for each of an H200's 132 multiprocessors, near enough


@triton.jit(do_not_specialize=["rows"])  # one kernel for every batch
def _normalise_kernel(x, affine, out, rows, C: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * ROWS
    lane = tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = (first + lane < rows)[:, None] & (channel < C)[None, :]
    slope = tl.load(affine + channel, mask=channel < C, other=0)
    offset = tl.load(affine + C + channel, mask=channel < C, other=0)
    at = first * C + lane[:, None] * C + channel[None, :]
    z = tl.load(x + at, mask=there, other=0).to(tl.float32) * slope[None, :] + offset[None, :]
    tl.store(out + at, tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows", "steps"])
def _normalisation_sums_kernel(
    da,  # (rows, C)
    x,  # (rows, C)
    affine,  # fp32 (2, C)
    mean,  # fp32 (C,)
    partial,  # fp32 (stretches, 2, C)
    rows,
    steps,  # blocks of ROWS rows of a program
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    stretch = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channel < C
    slope = tl.load(affine + channel, mask=valid, other=0)[None, :]
    offset = tl.load(affine + C + channel, mask=valid, other=0)[None, :]
    centre = tl.load(mean + channel, mask=valid, other=0)[None, :]
    sum_dz = tl.zeros([ROWS, CHANNELS], tl.float32)
    sum_dzx = tl.zeros([ROWS, CHANNELS], tl.float32)
    for step in tl.range(steps):
        first = (stretch * steps + step) * ROWS
        there = (first + lane < rows)[:, None] & valid[None, :]
        at = first * C + lane[:, None] * C + channel[None, :]
        seen = tl.load(x + at, mask=there, other=0).to(tl.float32)
        gradient = tl.load(da + at, mask=there, other=0).to(tl.float32)
        dz = tl.where(seen * slope + offset <= 0, 0.0, gradient)
        sum_dz += dz
        sum_dzx += dz * (seen - centre)
    to = partial + stretch * (2 * C) + channel
    tl.store(to, tl.sum(sum_dz, axis=0), mask=valid)
    tl.store(to + C, tl.sum(sum_dzx, axis=0), mask=valid)


@triton.jit(do_not_specialize=["rows"])
def _normalisation_input_kernel(
    da,  # (rows, C)
    x,  # (rows, C)
    affine,  # fp32 (2, C)
    pull,  # fp32 (2, C): what the statistics take off, c and b of dx = slope * dz - c - b * x
    around,  # (rows, C) or None
    dx,  # (rows, C)
    rows,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    lane = tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channel < C
    there = (first + lane < rows)[:, None] & valid[None, :]
    slope = tl.load(affine + channel, mask=valid, other=0)[None, :]
    offset = tl.load(affine + C + channel, mask=valid, other=0)[None, :]
    constant = tl.load(pull + channel, mask=valid, other=0)[None, :]
    rate = tl.load(pull + C + channel, mask=valid, other=0)[None, :]
    at = first * C + lane[:, None] * C + channel[None, :]
    seen = tl.load(x + at, mask=there, other=0).to(tl.float32)
    gradient = tl.load(da + at, mask=there, other=0).to(tl.float32)
    dz = tl.where(seen * slope + offset <= 0, 0.0, gradient)
    value = slope * dz - constant - rate * seen
    if around is not None:
        value += tl.load(around + at, mask=there, other=0).to(tl.float32)
    tl.store(dx + at, value.to(dx.dtype.element_ty), mask=there)


@operator("normalise")
def normalise(x: Tensor, affine_2C: Tensor) -> Tensor:
    """relu(slope * x + offset), channels-last, of the shape and dtype of ``x``, (M, C, h, w)."""
    out = torch.empty_like(x, memory_format=torch.channels_last)
    rows, C = x.numel() // x.shape[1], x.shape[1]
    if rows:
        with torch.cuda.device_of(x):  # a launch goes to the current device
            _normalise_kernel[(cdiv(rows, _ROWS), cdiv(C, _CHANNELS))](
                x.contiguous(memory_format=torch.channels_last), affine_2C.contiguous(), out, rows,
                C=C, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=_WARPS,
            )  # fmt: skip
    return out


@torch.library.register_fake("fastselfie::normalise")
def _(x: Tensor, affine_2C: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@operator("normalisation_sums")
def normalisation_sums(da: Tensor, x: Tensor, affine_2C: Tensor, mean_C: Tensor) -> Tensor:
    """Sums of dz and of dz * (x - mean), fp64 (2, C): dz is ``da`` where relu let it through. Maps (M, C, h, w)."""
    rows, C = x.numel() // x.shape[1], x.shape[1]
    blocks, columns = cdiv(rows, _ROWS), cdiv(C, _CHANNELS)
    steps = max(1, cdiv(blocks * columns, _PROGRAMS))
    stretches = cdiv(blocks, steps)
    partial = x.new_empty((stretches, 2, C), dtype=torch.float32)
    last = torch.channels_last
    if stretches:
        with torch.cuda.device_of(x):
            _normalisation_sums_kernel[(stretches, columns)](
                da.contiguous(memory_format=last), x.contiguous(memory_format=last), affine_2C.contiguous(),
                mean_C.contiguous(), partial, rows, steps, C=C, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=_WARPS,
            )  # fmt: skip
    return added_in_fp64(partial)


@torch.library.register_fake("fastselfie::normalisation_sums")
def _(da: Tensor, x: Tensor, affine_2C: Tensor, mean_C: Tensor) -> Tensor:
    return x.new_empty((2, x.shape[1]), dtype=torch.float64)


@operator("normalisation_input")
def normalisation_input(da: Tensor, x: Tensor, affine_2C: Tensor, pull_2C: Tensor, around: Tensor | None) -> Tensor:
    """slope * dz - c - b * x + around, channels-last like ``x``, (M, C, h, w); dz is ``da`` where relu let it through.

    Args:
        pull_2C: fp32, c and b: the gradient through the statistics. around: what goes past the batch norm.
    """
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    rows, C = x.numel() // x.shape[1], x.shape[1]
    last = torch.channels_last
    if rows:
        with torch.cuda.device_of(x):
            _normalisation_input_kernel[(cdiv(rows, _ROWS), cdiv(C, _CHANNELS))](
                da.contiguous(memory_format=last), x.contiguous(memory_format=last), affine_2C.contiguous(),
                pull_2C.contiguous(), None if around is None else around.contiguous(memory_format=last), dx, rows,
                C=C, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=_WARPS,
            )  # fmt: skip
    return dx


@torch.library.register_fake("fastselfie::normalisation_input")
def _(da: Tensor, x: Tensor, affine_2C: Tensor, pull_2C: Tensor, around: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)
