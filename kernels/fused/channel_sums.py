"""`channel_sums` in Triton: per-channel sum and sum of squares, what a batch norm's statistics are made of.

Bytes: the map is read once. Partial sums of a stretch of rows are in fp32; they are combined in fp64, in a fixed order:
the mean square is exact to about 1e-6, so the variance to 1e-4 where the mean is ten deviations, and no better beyond.
Shapes: M maps, D channels, h x w positions; a row is one position's D channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.collective import added_up
from fastselfie.kernels.fused.indexing import MOST_REGISTERS, rows_of
from fastselfie.kernels.fused.launch import cdiv
from fastselfie.kernels.operator import operator

_ROWS, _CHANNELS, _WARPS = 64, 64, 4
_PROGRAMS = 1024  # at most, each with a partial sum of its rows and channels


@triton.jit(do_not_specialize=["rows", "steps"])  # one kernel for every batch
def _kernel(
    maps,  # (rows, D)
    partial,  # fp32 (stretches, 2, D)
    rows,
    steps,  # blocks of ROWS rows of a program
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    stretch = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channel < D
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    for step in tl.range(steps):
        first = (stretch * steps + step) * ROWS
        there = first + lane < rows
        source = maps + first * D + lane[:, None] * D + channel[None, :]
        x = tl.load(source, mask=there[:, None] & valid[None, :], other=0).to(tl.float32)
        total += x
        squares += x * x
    target = partial + stretch * (2 * D) + channel
    tl.store(target, tl.sum(total, axis=0), mask=valid)
    tl.store(target + D, tl.sum(squares, axis=0), mask=valid)


@operator("channel_sums")
def _channel_sums(maps: Tensor) -> Tensor:
    """fp64 (2, D)."""
    x = rows_of(maps)
    rows, D = x.shape
    blocks = cdiv(rows, _ROWS)
    steps = max(1, cdiv(blocks * cdiv(D, _CHANNELS), _PROGRAMS))
    stretches = cdiv(blocks, steps)
    partial = x.new_empty((stretches, 2, D), dtype=torch.float32)
    if stretches:
        grid = (stretches, cdiv(D, _CHANNELS))
        with torch.cuda.device_of(x):  # a launch goes to the current device
            _kernel[grid](
                x, partial, rows, steps, D=D, ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=_WARPS, maxnreg=MOST_REGISTERS
            )
    return partial.sum(dim=0, dtype=torch.float64)


@torch.library.register_fake("fastselfie::channel_sums")
def _(maps: Tensor) -> Tensor:
    return maps.new_empty((2, maps.shape[1]), dtype=torch.float64)


def channel_sums(maps: Tensor, *, group: str = "") -> Tensor:
    """`fastselfie.kernels.channel_sums`, always by the kernel. `patch_tokens` takes their part of the gradient on."""
    sums_2D = _channel_sums(maps.detach())
    return added_up(sums_2D, group) if group else sums_2D
