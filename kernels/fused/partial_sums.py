"""Partial sums, fp32, added up in fp64 in Triton: read once, where torch would write them down as fp64 first.

They are taken in stretches of a fixed length and those in a fixed order: no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.launch import cdiv

_ROWS, _COLUMNS, _WARPS = 16, 64, 4
_STRETCHES = 64  # programs along the partial sums at most


@triton.jit(do_not_specialize=["rows", "steps"])  # one kernel for every batch
def _partial_sums_kernel(
    partial,  # fp32 (rows, N)
    out,  # fp64 (stretches, N)
    rows,
    steps,  # blocks of ROWS rows of a program
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    stretch = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(steps):
        first = (stretch * steps + step) * ROWS
        there = (first + lane < rows)[:, None] & (column < N)[None, :]
        at = first * N + lane[:, None] * N + column[None, :]
        total += tl.load(partial + at, mask=there, other=0).to(tl.float64)
    tl.store(out + stretch * N + column, tl.sum(total, axis=0), mask=column < N)


def added_in_fp64(partial: Tensor) -> Tensor:
    """The sum over the first dimension: fp32 (P, K, C), contiguous, to fp64 (K, C)."""
    rows, K, C = partial.shape
    blocks = cdiv(rows, _ROWS)
    steps = max(1, cdiv(blocks, _STRETCHES))
    stretches = cdiv(blocks, steps)
    out = partial.new_empty((stretches, K, C), dtype=torch.float64)
    if stretches:
        with torch.cuda.device_of(partial):  # a launch goes to the current device
            _partial_sums_kernel[(stretches, cdiv(K * C, _COLUMNS))](
                partial, out, rows, steps, N=K * C, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS
            )
    return out.sum(dim=0)
