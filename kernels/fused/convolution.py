"""A convolution over channels-last rows in Triton: batch norm and ReLU of its input in the prologue, the residual and
the next batch norm's sums in the epilogue. 1x1 and dense 2x2 ones are products; 3x3 ones go tap by tap.

Bytes: the input is read once a block of output channels (from cache but for the first), the residual once; the output
is written once. Neither the normalised input nor what stands before the addition reaches memory. A 3x3 convolution
takes its input as it is: normalising a value nine times costs more than writing it down (design, section 6).

Sums are of the values as they are written. Those of a block of rows are in fp32; blocks are combined in fp64, in a
fixed order. Shapes: M maps, C input and O output channels, h x w positions; a row is one position's channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.indexing import divide
from fastselfie.kernels.fused.launch import cdiv
from fastselfie.kernels.fused.partial_sums import added_in_fp64
from fastselfie.kernels.fused.tiles import depth_of, product_dtype, tile_of
from fastselfie.kernels.operator import operator


@triton.jit
def source_rows(first, lane, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr):
    """For output rows ``first + lane`` of maps of HEIGHT x WIDTH positions: image, int64, and y and x, int32, of the
    input position at the window's centre."""
    OUT_WIDTH: tl.constexpr = (WIDTH + STRIDE - 1) // STRIDE
    OUT_HEIGHT: tl.constexpr = (HEIGHT + STRIDE - 1) // STRIDE
    image, position = divide(first, lane, OUT_HEIGHT * OUT_WIDTH)
    return image, position // OUT_WIDTH * STRIDE, position % OUT_WIDTH * STRIDE


@triton.jit(do_not_specialize=["rows"])  # one kernel for every batch
def _convolution_kernel(
    x,  # (source rows, C)
    affine,  # fp32 (2, C), slope and offset, or None: the input as it is
    weight,  # (O, SIDE, SIDE, C)
    residual,  # (rows, O) or None
    y,  # (rows, O)
    partial,  # fp32 (row blocks, 2, O) or None
    rows,
    C: tl.constexpr,
    O: tl.constexpr,
    SIDE: tl.constexpr,  # of the window: 1 or 3
    STRIDE: tl.constexpr,
    HEIGHT: tl.constexpr,  # of a source map
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,  # dtype of the products
):
    tl.static_assert(affine is None or SIDE == 1, "padding would have to be 0 after the relu")
    blocks = (O + COLUMNS - 1) // COLUMNS
    row_block = (tl.program_id(0) // blocks).to(tl.int64)
    first = row_block * ROWS
    lane = tl.arange(0, ROWS)
    there = first + lane < rows
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < O
    inner = tl.arange(0, DEPTH)
    if SIDE > 1 or STRIDE > 1:
        image, top, left = source_rows(first, lane, HEIGHT, WIDTH, STRIDE)

    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.range(0, SIDE * SIDE * C, DEPTH):
        tap, channel = 0, k
        if SIDE > 1:
            tap, channel = k // C, tl.multiple_of(k % C, DEPTH)  # or the compiler loads value by value
        if SIDE > 1 or STRIDE > 1:
            source_y, source_x = top + tap // SIDE - SIDE // 2, left + tap % SIDE - SIDE // 2
            inside = there & (source_y >= 0) & (source_y < HEIGHT) & (source_x >= 0) & (source_x < WIDTH)
            source = x + ((image * HEIGHT + source_y) * WIDTH + source_x)[:, None] * C + (channel + inner)[None, :]
        else:
            inside = there
            source = x + first * C + lane[:, None] * C + (channel + inner)[None, :]
        value = tl.load(source, mask=inside[:, None], other=0)
        if affine is not None:
            slope = tl.load(affine + channel + inner)
            offset = tl.load(affine + C + channel + inner)
            z = value.to(tl.float32) * slope[None, :] + offset[None, :]
            value = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL).to(x.dtype.element_ty)
        taps = weight + column[None, :] * (SIDE * SIDE * C) + (k + inner)[:, None]
        factor = tl.load(taps, mask=valid[None, :], other=0)
        total = tl.dot(value.to(DOT), factor.to(DOT), total, input_precision="tf32x3")

    target = first * O + lane[:, None] * O + column[None, :]
    written = there[:, None] & valid[None, :]
    if residual is not None:
        total += tl.load(residual + target, mask=written, other=0).to(tl.float32)
    out = total.to(y.dtype.element_ty)
    tl.store(y + target, out, mask=written)
    if partial is not None:
        kept = tl.where(there[:, None], out.to(tl.float32), 0.0)  # rows that are not there are relu(offset) @ weight
        to = partial + row_block * (2 * O) + column
        tl.store(to, tl.sum(kept, axis=0), mask=valid)
        tl.store(to + O, tl.sum(kept * kept, axis=0), mask=valid)


@operator("convolution")
def convolution(
    x: Tensor, affine_2C: Tensor | None, weight: Tensor, residual: Tensor | None, stride: int, with_sums: bool
) -> tuple[Tensor, Tensor]:
    """The output, channels-last (M, O, h', w'), and the sums of its channels and of their squares, fp64 (2, O).

    Args:
        x: channels-last (M, C, h, w). affine_2C: fp32, slope and offset of batch norm, None for ``x`` as it is.
        weight: (O, C, 1, 1) or (O, C, 3, 3), of the dtype of ``x``; padding keeps h and w. with_sums: else empty.
        residual: channels-last (M, O, h', w'), added.
    """
    y, sums = _empty(x, affine_2C, weight, residual, stride, with_sums)
    (M, C, height, width), (_, O, out_height, out_width) = x.shape, y.shape
    rows = M * out_height * out_width
    if not rows:
        return y, sums.zero_()
    tile = tile_of("convolution", O, x.dtype)
    moves = weight.shape[2] > 1 or stride > 1  # else a row comes from the same row, whatever the map's size
    row_blocks = cdiv(rows, tile.rows)
    partial = x.new_empty((row_blocks, 2, O), dtype=torch.float32) if with_sums else None
    last = torch.channels_last
    with torch.cuda.device_of(x):  # a launch goes to the current device
        _convolution_kernel[(row_blocks * cdiv(O, tile.columns),)](
            x.contiguous(memory_format=last), None if affine_2C is None else affine_2C.contiguous(),
            weight.permute(0, 2, 3, 1).contiguous(),
            None if residual is None else residual.contiguous(memory_format=last), y, partial, rows,
            C=C, O=O, SIDE=weight.shape[2], STRIDE=stride, HEIGHT=height if moves else 0, WIDTH=width if moves else 0,
            ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=depth_of(C, tile), DOT=product_dtype(x.dtype),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return y, sums if partial is None else added_in_fp64(partial)


@torch.library.register_fake("fastselfie::convolution")
def _empty(
    x: Tensor, affine_2C: Tensor | None, weight: Tensor, residual: Tensor | None, stride: int, with_sums: bool
) -> tuple[Tensor, Tensor]:
    assert affine_2C is None or weight.shape[2] == 1, (
        "a 3x3 one takes its input as it is: padding would be relu(offset)"
    )
    (M, _, h, w), O = x.shape, weight.shape[0]
    size = (M, O, -(-h // stride), -(-w // stride))
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return y, x.new_empty((2, O if with_sums else 0), dtype=torch.float64)
