"""`patch_batch` in Triton: from uint8 pixels to the trunk's input in one pass.

Bytes: each pixel that is shown is read once (1 byte), each value is written once (2 or 4 bytes).
Shapes: B images, S resident images, H x W pixels, N patches an image, P pixels a side of a patch.

A row is one line of pixels of one output patch: 3 * P values, together in the output. A program makes some blocks of
ROWS rows, each COLUMNS values at a time: what depends on the row (sample, patch, crop, flip) and what depends on the
column (pixel, channel) is worked out apart, and little is left to do for each value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.indexing import divide
from fastselfie.kernels.fused.launch import cdiv, next_power_of_2
from fastselfie.kernels.operator import operator
from fastselfie.kernels.reference import PadMode, image_size

_TILE = 1024  # values: 8 for each of 128 threads, which one 16-byte store of bf16 writes
_WARPS = 4
_BLOCKS = 4  # row blocks of a program at most: the more, the less its start costs a value
_PROGRAMS = 2048  # enough to fill any device; a program takes more row blocks only beyond this


@triton.jit
def _reflected(at, size: tl.constexpr):
    """``at`` mirrored at the first and the last of ``size`` pixels."""
    return (size - 1) - tl.abs((size - 1) - tl.abs(at))


@triton.jit
def _offset(at, stride_cell, stride, CELL: tl.constexpr):
    """Where pixel ``at`` of a line or column lies, int64: ``stride`` apart, or so within a grid view's cell."""
    if CELL > 0:
        offset = (at // CELL).to(tl.int64) * stride_cell + (at % CELL).to(tl.int64) * stride
    else:
        offset = at.to(tl.int64) * stride
    return offset


@triton.jit(do_not_specialize=["total", "blocks"])  # one kernel for every batch
def _kernel(
    pixels,  # uint8, strides below
    rows,  # int64 (B,) or None
    corner,  # int64 (B, 2) or None
    flip,  # bool (B,) or None
    places,  # int64 (B, N) or None
    mean,  # fp32 (3,)
    std,  # fp32 (3,)
    out,  # (B, N, P, P, 3)
    total,  # B * N * P rows
    blocks,  # row blocks of a program
    stride_image,
    stride_cell_y,  # of a grid view's cells: unused where CELL is 0
    stride_y,
    stride_cell_x,
    stride_x,
    stride_c,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    CELL: tl.constexpr,  # pixels a side of a grid view's cell; 0: all pixels of a line are stride_x apart
    PAD: tl.constexpr,
    REFLECT: tl.constexpr,
    PACKED: tl.constexpr,  # a patch's line lies together in the source too
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    N: tl.constexpr = (H // P) * (W // P)
    # (x / 255 - mean) / std as one multiply-add a channel.
    std_0, std_1, std_2 = tl.load(std), tl.load(std + 1), tl.load(std + 2)
    scale_0, scale_1, scale_2 = tl.div_rn(1.0, 255 * std_0), tl.div_rn(1.0, 255 * std_1), tl.div_rn(1.0, 255 * std_2)
    shift_0 = tl.div_rn(-tl.load(mean), std_0)
    shift_1 = tl.div_rn(-tl.load(mean + 1), std_1)
    shift_2 = tl.div_rn(-tl.load(mean + 2), std_2)
    lane = tl.arange(0, ROWS)
    for block in tl.range(blocks):
        first = (tl.program_id(0).to(tl.int64) * blocks + block) * ROWS
        there = first + lane < total
        sample, rest = divide(first, lane, N * P)
        place = rest // P
        if places is not None:
            place = tl.load(places + sample * N + place, mask=there, other=0).to(tl.int32)
        y = place // (W // P) * P + rest % P
        x = place % (W // P) * P
        step = tl.full([ROWS], 1, tl.int32)
        if flip is not None:
            mirrored = tl.load(flip + sample, mask=there, other=0) != 0
            x = tl.where(mirrored, W - 1 - x, x)
            step = tl.where(mirrored, -1, 1)
        if corner is not None:
            y += tl.load(corner + 2 * sample, mask=there, other=0).to(tl.int32) - PAD
            x += tl.load(corner + 2 * sample + 1, mask=there, other=0).to(tl.int32) - PAD
        shown = there  # beside these, pixels are black
        if REFLECT:
            y = _reflected(y, H)
        elif PAD > 0:
            shown = there & (y >= 0) & (y < H)
        image = sample
        if rows is not None:
            image = tl.load(rows + sample, mask=there, other=0)
        source = pixels + image * stride_image + _offset(y, stride_cell_y, stride_y, CELL)
        target = out + first * (3 * P)

        # In steps of three column blocks the channels of a block's columns stay the same: selecting is hoisted.
        for base in tl.range(0, 3 * P, 3 * COLUMNS):
            for third in tl.static_range(3):
                column = third * COLUMNS + tl.arange(0, COLUMNS)
                channel = column % 3
                scale = tl.where(channel == 0, scale_0, tl.where(channel == 1, scale_1, scale_2))
                shift = tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))
                column += base
                fits = (column < 3 * P)[None, :]
                if PACKED:
                    offset = (x * 3)[:, None] + column[None, :]
                    value = tl.load(source[:, None] + offset, mask=shown[:, None] & fits, other=0)
                else:
                    x_here = x[:, None] + step[:, None] * (column // 3)[None, :]
                    inside = shown[:, None] & fits
                    if REFLECT:
                        x_here = _reflected(x_here, W)
                    elif PAD > 0:
                        inside = inside & (x_here >= 0) & (x_here < W)
                    offset = channel.to(tl.int64)[None, :] * stride_c + _offset(x_here, stride_cell_x, stride_x, CELL)
                    value = tl.load(source[:, None] + offset, mask=inside, other=0)
                value = value.to(tl.float32) * scale[None, :] + shift[None, :]
                where = target + lane[:, None] * (3 * P) + column[None, :]
                tl.store(where, value.to(out.dtype.element_ty), mask=there[:, None] & fits)


@operator("patch_batch")
def _patch_batch(
    pixels: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype, rows_B: Tensor | None,
    corner_B2: Tensor | None, flip_B: Tensor | None, pad: int, reflect: bool, places_BN: Tensor | None,
) -> Tensor:  # fmt: skip
    """(B * N, P, P, 3), contiguous."""
    out = _empty(pixels, patch, mean, std, dtype, rows_B)
    if out.numel() == 0:
        return out
    H, W = image_size(pixels)
    cells = pixels.dim() == 6
    stride_image, *strides, stride_c = pixels.stride()
    stride_cell_y, stride_y, stride_cell_x, stride_x = strides if cells else (0, strides[0], 0, strides[1])
    if cells and stride_cell_y == pixels.shape[2] * stride_y and stride_cell_x == pixels.shape[4] * stride_x:
        cells = False  # the cells lie side by side: it is an image
    packed = not cells and flip_B is None and pad == 0 and stride_x == 3 and stride_c == 1
    columns = patch & -patch if patch % 4 == 0 else next_power_of_2(patch)
    columns = min(columns, 32)
    rows = _TILE // columns
    total = out.numel() // (3 * patch)
    row_blocks = cdiv(total, rows)
    blocks = max(1, min(_BLOCKS, row_blocks // _PROGRAMS))
    with torch.cuda.device_of(pixels):  # a launch goes to the current device
        _kernel[(cdiv(row_blocks, blocks),)](
            pixels, _packed(rows_B), _packed(corner_B2) if pad else None, _packed(flip_B), _packed(places_BN),
            mean.contiguous(), std.contiguous(), out, total, blocks,
            stride_image, stride_cell_y, stride_y, stride_cell_x, stride_x, stride_c,
            H=H, W=W, P=patch, CELL=pixels.shape[2] if cells else 0, PAD=pad, REFLECT=reflect and pad > 0,
            PACKED=packed, ROWS=rows, COLUMNS=columns, num_warps=_WARPS,
        )  # fmt: skip
    return out


@torch.library.register_fake("fastselfie::patch_batch")
def _empty(
    pixels: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype, rows_B: Tensor | None, *rest: object
) -> Tensor:
    H, W = image_size(pixels)
    images = pixels.shape[0] if rows_B is None else rows_B.shape[0]
    return pixels.new_empty((images * (H // patch) * (W // patch), patch, patch, 3), dtype=dtype)


def _packed(indices: Tensor | None) -> Tensor | None:
    return None if indices is None else indices.contiguous()


def patch_batch(
    pixels: Tensor,
    *,
    patch: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    rows_B: Tensor | None = None,
    corner_B2: Tensor | None = None,
    flip_B: Tensor | None = None,
    pad: int = 0,
    pad_mode: PadMode = "zero",
    places_BN: Tensor | None = None,
) -> Tensor:
    """`fastselfie.kernels.patch_batch`, always by the kernel."""
    reflect = pad_mode == "reflect"
    return _patch_batch(pixels, patch, mean, std, dtype, rows_B, corner_B2, flip_B, pad, reflect, places_BN).permute(
        0, 3, 1, 2
    )
