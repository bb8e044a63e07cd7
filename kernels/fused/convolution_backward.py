"""The gradients of a 1x1 convolution of relu(batch norm), in Triton: of what enters the ReLU, and of the weight.

Bytes: `convolution_input` reads the output's gradient and the input and writes dz; the two sums that batch norm's
gradient needs come out of its epilogue. `convolution_weight` reads the same two and recomputes the normalised input.
Sums over rows are taken in stretches of a fixed length and combined in a fixed order: no atomics.
Shapes: as in `fastselfie.kernels.fused.convolution`; dz is the gradient of slope * x + offset.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.convolution import source_rows
from fastselfie.kernels.fused.indexing import divide
from fastselfie.kernels.fused.launch import cdiv
from fastselfie.kernels.fused.partial_sums import added_in_fp64
from fastselfie.kernels.fused.tiles import depth_of, product_dtype, stretch_steps, tile_of
from fastselfie.kernels.operator import operator


@triton.jit(do_not_specialize=["rows"])  # one kernel for every batch
def _convolution_input_kernel(
    dy,  # (rows, O)
    weight,  # (O, C)
    x,  # (rows, C)
    affine,  # fp32 (2, C), slope and offset
    mean,  # fp32 (C,)
    branch,  # (rows of every STRIDE-th position, C) or None: what another convolution of the same relu adds
    dz,  # (rows, C)
    partial,  # fp32 (row blocks, 2, C)
    rows,
    C: tl.constexpr,
    O: tl.constexpr,
    STRIDE: tl.constexpr,  # of the other convolution
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    blocks = (C + COLUMNS - 1) // COLUMNS
    row_block = (tl.program_id(0) // blocks).to(tl.int64)
    first = row_block * ROWS
    lane = tl.arange(0, ROWS)
    there = first + lane < rows
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < C
    inner = tl.arange(0, DEPTH)

    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.range(0, O, DEPTH):
        value = tl.load(dy + first * O + lane[:, None] * O + (k + inner)[None, :], mask=there[:, None], other=0)
        factor = tl.load(weight + (k + inner)[:, None] * C + column[None, :], mask=valid[None, :], other=0)
        total = tl.dot(value.to(DOT), factor.to(DOT), total, input_precision="tf32x3")
    if branch is not None:
        if STRIDE > 1:
            image, position = divide(first, lane, HEIGHT * WIDTH)
            y, x_here = position // WIDTH, position % WIDTH
            taken = there & (y % STRIDE == 0) & (x_here % STRIDE == 0)
            row = (image * ((HEIGHT + STRIDE - 1) // STRIDE) + y // STRIDE) * ((WIDTH + STRIDE - 1) // STRIDE)
            source = branch + (row + x_here // STRIDE)[:, None] * C + column[None, :]
        else:
            taken = there
            source = branch + first * C + lane[:, None] * C + column[None, :]
        total += tl.load(source, mask=taken[:, None] & valid[None, :], other=0).to(tl.float32)

    target = first * C + lane[:, None] * C + column[None, :]
    written = there[:, None] & valid[None, :]
    seen = tl.load(x + target, mask=written, other=0).to(tl.float32)
    slope = tl.load(affine + column, mask=valid, other=0)
    offset = tl.load(affine + C + column, mask=valid, other=0)
    out = tl.where(seen * slope[None, :] + offset[None, :] <= 0, 0.0, total).to(dz.dtype.element_ty)
    tl.store(dz + target, out, mask=written)
    kept = tl.where(there[:, None], out.to(tl.float32), 0.0)
    deviation = seen - tl.load(mean + column, mask=valid, other=0)[None, :]
    to = partial + row_block * (2 * C) + column
    tl.store(to, tl.sum(kept, axis=0), mask=valid)
    tl.store(to + C, tl.sum(kept * deviation, axis=0), mask=valid)


@triton.jit(do_not_specialize=["rows", "steps"])
def _convolution_weight_kernel(
    dy,  # (rows, O)
    x,  # (source rows, C)
    affine,  # fp32 (2, C)
    partial,  # fp32 (stretches, O, C)
    rows,
    steps,  # blocks of DEPTH rows of a program
    C: tl.constexpr,
    O: tl.constexpr,
    STRIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,  # output channels
    COLUMNS: tl.constexpr,  # input channels
    DEPTH: tl.constexpr,  # rows of dy and x
    DOT: tl.constexpr,
):
    stretch = tl.program_id(1).to(tl.int64)
    blocks = (C + COLUMNS - 1) // COLUMNS
    out = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, DEPTH)
    slope = tl.load(affine + column, mask=column < C, other=0)
    offset = tl.load(affine + C + column, mask=column < C, other=0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in tl.range(steps):
        first = (stretch * steps + step) * DEPTH
        there = first + lane < rows
        gradient = tl.load(
            dy + first * O + lane[:, None] * O + out[None, :], mask=there[:, None] & (out < O)[None, :], other=0
        )
        if STRIDE > 1:
            image, y, x_here = source_rows(first, lane, HEIGHT, WIDTH, STRIDE)
            source = x + ((image * HEIGHT + y) * WIDTH + x_here)[:, None] * C + column[None, :]
        else:
            source = x + first * C + lane[:, None] * C + column[None, :]
        value = tl.load(source, mask=there[:, None] & (column < C)[None, :], other=0).to(tl.float32)
        z = value * slope[None, :] + offset[None, :]
        activated = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL).to(x.dtype.element_ty)
        total = tl.dot(tl.trans(gradient).to(DOT), activated.to(DOT), total, input_precision="tf32x3")
    target = partial + stretch * (O * C) + out.to(tl.int64)[:, None] * C + column[None, :]
    tl.store(target, total, mask=(out < O)[:, None] & (column < C)[None, :])


@operator("convolution_input")
def convolution_input(
    dy: Tensor, weight: Tensor, x: Tensor, affine_2C: Tensor, mean_C: Tensor, branch: Tensor | None, stride: int
) -> tuple[Tensor, Tensor]:
    """dz = (dy @ weight + branch) where relu let it through, channels-last like ``x``, and the sums of dz and of
    dz * (x - mean), fp64 (2, C).

    Args:
        dy: channels-last (M, O, h, w). weight: (O, C, 1, 1). x: channels-last (M, C, h, w).
        branch: channels-last (M, C, h', w'), gradient of the same relu by a convolution of that ``stride``.
    """
    dz, sums = _empty_input(dy, weight, x, affine_2C, mean_C, branch, stride)
    (M, C, height, width), O = x.shape, weight.shape[0]
    rows = M * height * width
    if not rows:
        return dz, sums.zero_()
    tile = tile_of("input", C, x.dtype)
    row_blocks = cdiv(rows, tile.rows)
    partial = x.new_empty((row_blocks, 2, C), dtype=torch.float32)
    last = torch.channels_last
    with torch.cuda.device_of(x):  # a launch goes to the current device
        _convolution_input_kernel[(row_blocks * cdiv(C, tile.columns),)](
            dy.contiguous(memory_format=last), weight.flatten(1).contiguous(), x.contiguous(memory_format=last),
            affine_2C.contiguous(), mean_C.contiguous(),
            None if branch is None else branch.contiguous(memory_format=last), dz, partial, rows,
            C=C, O=O, STRIDE=stride, HEIGHT=height if stride > 1 else 0, WIDTH=width if stride > 1 else 0,
            ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=depth_of(O, tile), DOT=product_dtype(x.dtype),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return dz, added_in_fp64(partial)


@torch.library.register_fake("fastselfie::convolution_input")
def _empty_input(
    dy: Tensor, weight: Tensor, x: Tensor, affine_2C: Tensor, mean_C: Tensor, branch: Tensor | None, stride: int
) -> tuple[Tensor, Tensor]:
    dz = torch.empty_like(x, memory_format=torch.channels_last)
    return dz, x.new_empty((2, x.shape[1]), dtype=torch.float64)


@operator("convolution_weight")
def convolution_weight(dy: Tensor, x: Tensor, affine_2C: Tensor, stride: int) -> Tensor:
    """The gradient of a 1x1 convolution's weight, fp32 (O, C): dy (M, O, h', w') over relu(slope * x + offset)."""
    (M, C, height, width), O = x.shape, dy.shape[1]
    rows = M * dy.shape[2] * dy.shape[3]
    tile = tile_of("weight", C, x.dtype)
    tiles = cdiv(O, tile.rows) * cdiv(C, tile.columns)
    steps = stretch_steps(rows, tile, tiles)
    stretches = cdiv(cdiv(rows, tile.depth), steps)
    partial = x.new_empty((stretches, O, C), dtype=torch.float32)
    last = torch.channels_last
    if stretches:
        with torch.cuda.device_of(x):
            _convolution_weight_kernel[(tiles, stretches)](
                dy.contiguous(memory_format=last), x.contiguous(memory_format=last), affine_2C.contiguous(), partial,
                rows, steps,
                C=C, O=O, STRIDE=stride, HEIGHT=height if stride > 1 else 0, WIDTH=width if stride > 1 else 0,
                ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, DOT=product_dtype(x.dtype),
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return partial.sum(dim=0)


@torch.library.register_fake("fastselfie::convolution_weight")
def _(dy: Tensor, x: Tensor, affine_2C: Tensor, stride: int) -> Tensor:
    return x.new_empty((dy.shape[1], x.shape[1]), dtype=torch.float32)
