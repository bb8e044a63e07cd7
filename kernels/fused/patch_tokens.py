"""`patch_tokens` in Triton: final batch norm, ReLU, average pooling, u0 in front and position vectors, in one pass.

Bytes forward: the maps are read once; tokens and features are written once. Backward: see `patch_tokens_backward`.
Shapes: B images, N patches of which n are visible and m masked, D channels, h x w positions, M = B * N maps.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.collective import added_up
from fastselfie.kernels.fused.indexing import divide, rows_of
from fastselfie.kernels.fused.launch import cdiv
from fastselfie.kernels.fused.patch_tokens_backward import batch_norm, patch_tokens_input, patch_tokens_reduce
from fastselfie.kernels.operator import operator
from fastselfie.kernels.reference import token_dtype

_ROWS, _CHANNELS, _WARPS = 16, 128, 4


@triton.jit(do_not_specialize=["rows"])  # one kernel for every batch
def _kernel(
    maps,  # (B * N * HW, D)
    statistics,  # fp32 (2, D): mean and variance
    weight,  # fp32 (D,)
    bias,  # fp32 (D,)
    u0,  # (D,)
    positions,  # (N, D) or None
    places,  # int64 (B, N)
    tokens,  # (B, 1 + n, D)
    features,  # (B, m, D)
    inverse,  # int32 (B, N): which patch of the image shows each place
    rows,  # B * (1 + N)
    eps,
    N: tl.constexpr,
    VISIBLE: tl.constexpr,
    HW: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    lane = tl.arange(0, ROWS)
    there = first + lane < rows
    image, token = divide(first, lane, 1 + N)  # token 0 is u0, token 1 + j is patch j
    is_patch = there & (token > 0)
    patch = image * N + token - 1

    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = (channel < D)[None, :]
    mean, _, slope, offset = batch_norm(statistics, weight, bias, eps, channel, D)

    pooled = tl.zeros([ROWS, CHANNELS], tl.float32)
    source = maps + (patch * (HW * D))[:, None] + channel[None, :]
    for position in tl.static_range(HW):
        x = tl.load(source + position * D, mask=is_patch[:, None] & valid, other=0).to(tl.float32)
        z = (x - mean[None, :]) * slope[None, :] + offset[None, :]
        pooled += tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    pooled *= 1.0 / HW

    is_masked = is_patch & (token > VISIBLE)
    target = features + (image * (N - VISIBLE) + token - 1 - VISIBLE)[:, None] * D + channel[None, :]
    tl.store(target, pooled.to(features.dtype.element_ty), mask=is_masked[:, None] & valid)

    is_token = there & (token <= VISIBLE)
    front = tl.load(u0 + channel, mask=channel < D, other=0).to(tl.float32)
    place = tl.load(places + patch, mask=is_patch, other=0)
    if tl.program_id(1) == 0:
        tl.store(inverse + image * N + place, token - 1, mask=is_patch)
    if positions is not None:
        seen = (is_patch & is_token)[:, None] & valid
        pooled += tl.load(positions + place[:, None] * D + channel[None, :], mask=seen, other=0).to(tl.float32)
    pooled = tl.where((token == 0)[:, None], front[None, :], pooled)
    target = tokens + (image * (1 + VISIBLE) + token)[:, None] * D + channel[None, :]
    tl.store(target, pooled.to(tokens.dtype.element_ty), mask=is_token[:, None] & valid)


@operator("patch_tokens")
def _patch_tokens(
    maps: Tensor, statistics_2D: Tensor, weight_D: Tensor, bias_D: Tensor, u0_D: Tensor, positions_ND: Tensor | None,
    places_BN: Tensor, visible: int, eps: float, count: int, group: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Tokens, features, and which patch shows each place. ``count`` and ``group`` are for the backward."""
    tokens, features, inverse = _empty(maps, statistics_2D, weight_D, bias_D, u0_D, positions_ND, places_BN, visible)
    B, N = places_BN.shape
    D, rows = maps.shape[1], B * (1 + N)
    if rows:
        grid = (cdiv(rows, _ROWS), cdiv(D, _CHANNELS))
        with torch.cuda.device_of(maps):  # a launch goes to the current device
            _kernel[grid](
                rows_of(maps), statistics_2D.contiguous(), weight_D.contiguous(), bias_D.contiguous(),
                u0_D.contiguous(), None if positions_ND is None else positions_ND.contiguous(), places_BN.contiguous(),
                tokens, features, inverse, rows, eps,
                N=N, VISIBLE=visible, HW=maps.shape[2] * maps.shape[3], D=D,
                ROWS=_ROWS, CHANNELS=_CHANNELS, num_warps=_WARPS,
            )  # fmt: skip
    return tokens, features, inverse


@torch.library.register_fake("fastselfie::patch_tokens")
def _empty(
    maps: Tensor, statistics_2D: Tensor, weight_D: Tensor, bias_D: Tensor, u0_D: Tensor, positions_ND: Tensor | None,
    places_BN: Tensor, visible: int, *rest: object,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (B, N), D = places_BN.shape, maps.shape[1]
    tokens = maps.new_empty((B, 1 + visible, D), dtype=token_dtype(maps, positions_ND))
    inverse = maps.new_empty((B, N), dtype=torch.int32)
    return tokens, maps.new_empty((B, N - visible, D)), inverse


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    maps, statistics_2D, weight_D, bias_D, u0_D, positions_ND, _, ctx.visible, ctx.eps, ctx.count, ctx.group = inputs
    ctx.save_for_backward(maps, statistics_2D, weight_D, bias_D, output[2])
    ctx.u0_dtype = u0_D.dtype
    ctx.positions_dtype = None if positions_ND is None else positions_ND.dtype


def _backward(ctx: Any, dtokens: Tensor, dfeatures: Tensor, _: None) -> tuple[Tensor | None, ...]:
    maps, statistics_2D, weight_D, bias_D, inverse_BN = ctx.saved_tensors
    around = (dtokens, dfeatures, maps, statistics_2D, weight_D, bias_D)
    sums_2D, dpositions_ND = patch_tokens_reduce(*around, inverse_BN, ctx.eps, ctx.positions_dtype is not None)
    dbias_D, dweight_D = sums_2D.to(weight_D.dtype).unbind()
    if ctx.group:
        sums_2D = added_up(sums_2D, ctx.group)
    dmaps = patch_tokens_input(*around, sums_2D, ctx.eps, ctx.count)
    du0_D = dtokens[:, 0].sum(dim=0, dtype=torch.float32).to(ctx.u0_dtype)
    dpositions = None if ctx.positions_dtype is None else dpositions_ND.to(ctx.positions_dtype)
    return dmaps, None, dweight_D, dbias_D, du0_D, dpositions, None, None, None, None, None


torch.library.register_autograd("fastselfie::patch_tokens", _backward, setup_context=_setup_context)


def patch_tokens(
    maps: Tensor,
    statistics_2D: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    u0_D: Tensor,
    positions_ND: Tensor | None,
    places_BN: Tensor,
    visible: int,
    *,
    eps: float,
    count: int,
    group: str = "",
) -> tuple[Tensor, Tensor]:
    """`fastselfie.kernels.patch_tokens`, always by the kernels."""
    statistics_2D = statistics_2D.detach()  # their part of the gradient is in the maps'
    tokens, features, _ = _patch_tokens(
        maps, statistics_2D, weight_D, bias_D, u0_D, positions_ND, places_BN, visible, eps, count, group
    )
    return tokens, features
