"""Tile sizes of the trunk's products: a pinned table, so that sums are taken in the same order in every run.

Chosen by registers and shared memory of compiled code (`bench.kernel_resources`), not by time: none has run on a GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl

from fastselfie.kernels.dispatch import interpreted
from fastselfie.kernels.fused.launch import cdiv, next_power_of_2
from fastselfie.kernels.fused.products import wide_products


class Tile(NamedTuple):
    """Rows and columns of a program's accumulator, values of the inner dimension a step, and launch options."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_PROGRAMS = 264  # of a weight's gradient at least, two for each of an H200's 132 multiprocessors, if rows allow
_NARROW = {  # up to 64 output columns
    "convolution": Tile(rows=128, columns=64, depth=64, warps=4, stages=3),
    "input": Tile(rows=128, columns=64, depth=64, warps=4, stages=3),
    "weight": Tile(rows=64, columns=64, depth=64, warps=4, stages=3),
}
_WIDE = {
    "convolution": Tile(rows=128, columns=128, depth=64, warps=8, stages=3),
    "input": Tile(rows=64, columns=128, depth=64, warps=4, stages=3),
    "weight": Tile(rows=64, columns=128, depth=64, warps=4, stages=3),
}
_REPLICATED = {  # instead, where operands of a product lie in registers: four warps have too few for its epilogue
    "input": Tile(rows=64, columns=128, depth=64, warps=8, stages=3),
}
_EXACT = Tile(rows=64, columns=64, depth=32, warps=4, stages=2)  # fp32, whose products are three of tf32 each


def tile_of(product: str, columns: int, dtype: torch.dtype) -> Tile:
    """The tile for a product of so many output columns of maps of ``dtype``."""
    if dtype == torch.float32:
        return _EXACT._replace(columns=min(64, max(16, next_power_of_2(columns))))
    if columns > 64:
        return _WIDE[product] if wide_products() else _REPLICATED.get(product, _WIDE[product])
    tile = _NARROW[product]
    return tile._replace(columns=max(16, next_power_of_2(columns)))


def depth_of(inner: int, tile: Tile) -> int:
    """The largest step of the inner dimension that divides it; a multiple of 16 does not need a mask."""
    return min(tile.depth, inner & -inner)


def stretch_steps(rows: int, tile: Tile, tiles: int) -> int:
    """Blocks of ``tile.depth`` rows that a program of a weight's gradient adds up, where ``tiles`` cover the weight."""
    blocks = cdiv(rows, tile.depth)
    return max(1, min(blocks, blocks * tiles // _PROGRAMS))


def product_dtype(dtype: torch.dtype) -> Any:
    """In what products are computed: as the maps are. The interpreter has no products of bf16; there it is fp32."""
    if interpreted() and dtype == torch.bfloat16:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]
