"""`location_head` in Triton: queries, scores, cross entropy and right answers, without a score or query in memory.

One program an image: scores add up on chip over blocks of D, and never leave it. For the backward it writes
softmax(s) - I, the scores' gradient before the scale, fp32, a row for each of the N places with m padded to a tile: in
the recipes' shapes about an eighth of the bytes of bf16 features, which computing the scores again would read once
more.

Bytes: u, places and h are read once, the rows of e come from cache, what is kept is written once. Backward: see
`location_head_backward`.
Shapes: B images, N places, m masked patches, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.location_head_backward import location_head_backward
from fastselfie.kernels.fused.products import arithmetic, dot, tile
from fastselfie.kernels.operator import operator


@triton.jit
def _forward_kernel(
    u,  # (B, D)
    positions,  # (N, D)
    places,  # int64 (B, m), rows stride_places apart
    h,  # (B, m, D), strides below
    losses,  # fp32 (B,): sums over an image's questions
    rights,  # int32 (B,)
    score_gradient,  # fp32 (B, N, QUESTIONS) or None: softmax(s) - I, the row of each masked place, else 0
    scale,
    stride_places,
    stride_image,
    stride_patch,
    N: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    PLACES: tl.constexpr,  # N, padded to a tile
    QUESTIONS: tl.constexpr,  # m, padded to a tile
    FEATURES: tl.constexpr,
    DOT: tl.constexpr,  # dtype of the products: h's, or fp32
    PARTS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, QUESTIONS)
    valid = index < M
    place = tl.load(places + image * stride_places + index, mask=valid, other=0)
    scores = tl.zeros([QUESTIONS, QUESTIONS], tl.float32)
    for start in tl.range(0, D, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        inside = valid[:, None] & (feature < D)[None, :]
        summary = tl.load(u + image * D + feature, mask=feature < D, other=0).to(tl.float32)
        query = tl.load(positions + place[:, None] * D + feature[None, :], mask=inside, other=0).to(tl.float32)
        query += summary[None, :]
        source = h + image * stride_image + index.to(tl.int64)[:, None] * stride_patch + feature[None, :]
        patches = tl.load(source, mask=inside, other=0).to(DOT)
        scores = dot(query, tl.trans(patches), scores, PARTS)

    is_own = index[:, None] == index[None, :]
    scores = tl.where(valid[None, :], scores * scale, float("-inf"))
    own = tl.sum(tl.where(is_own, scores, 0.0), axis=1)
    largest = tl.max(scores, axis=1)
    weights = tl.exp(scores - largest[:, None])
    total = tl.sum(weights, axis=1)
    loss = tl.where(valid, tl.log(total) + largest - own, 0.0)
    tl.store(losses + image, tl.sum(loss, axis=0))
    # The first of equal scores is the answer, as in argmax. A NaN is no right answer.
    beaten = (own[:, None] > scores) | ((own[:, None] == scores) & (index[:, None] <= index[None, :]))
    right = (tl.sum(beaten.to(tl.int32), axis=1) == QUESTIONS) & valid
    tl.store(rights + image, tl.sum(right.to(tl.int32), axis=0))
    if score_gradient is not None:
        value = tl.where(valid[None, :], weights / total[:, None] - is_own.to(tl.float32), 0.0)
        target = score_gradient + image * (N * QUESTIONS)
        tl.store(target + place[:, None] * QUESTIONS + index[None, :], value, mask=valid[:, None])
        here = tl.arange(0, PLACES)
        masked = tl.max(((place[None, :] == here[:, None]) & valid[None, :]).to(tl.int32), axis=1)
        blank = (masked == 0) & (here < N)
        nothing = tl.zeros([PLACES, QUESTIONS], tl.float32)
        tl.store(target + here[:, None] * QUESTIONS + index[None, :], nothing, mask=blank[:, None])


@triton.jit(do_not_specialize=["images"])
def _mean_kernel(losses, rights, loss, right, images, M: tl.constexpr, BLOCK: tl.constexpr):
    """Loss, fp32, and right answers, int64, of all images, in one program and so in one order."""
    index = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    count = tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, images, BLOCK):
        there = start + index < images
        total += tl.load(losses + start + index, mask=there, other=0).to(tl.float64)
        count += tl.load(rights + start + index, mask=there, other=0).to(tl.int64)
    tl.store(loss, (tl.sum(total, axis=0) / (images * M)).to(tl.float32))
    tl.store(right, tl.sum(count, axis=0))


@operator("location_head")
def _location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, right answers, and with ``keep`` what the backward needs."""
    (B, m, D), N = h_BmD.shape, positions_ND.shape[0]
    loss, right, score_gradient = _empty(u_BD, positions_ND, places_Bm, h_BmD, scale, keep)
    losses, rights = u_BD.new_empty(B, dtype=torch.float32), u_BD.new_empty(B, dtype=torch.int32)
    h_BmD = h_BmD if h_BmD.stride(2) == 1 else h_BmD.contiguous()
    places_Bm = places_Bm if places_Bm.stride(1) == 1 else places_Bm.contiguous()
    features = 64 if tile(m) == 16 or (tile(m) == 32 and h_BmD.dtype == torch.bfloat16) else 32  # no spill with these
    if B:
        with torch.cuda.device_of(h_BmD):  # a launch goes to the current device
            _forward_kernel[(B,)](
                u_BD.contiguous(), positions_ND.contiguous(), places_Bm, h_BmD, losses, rights,
                score_gradient if keep else None, scale, places_Bm.stride(0), h_BmD.stride(0), h_BmD.stride(1),
                N=N, M=m, D=D, PLACES=tile(N), QUESTIONS=tile(m), **arithmetic(h_BmD.dtype),
                FEATURES=features, num_warps=min(tile(m) // 16, 2),  # with 4, Triton 3.7 fails at tiles of 64 on sm_100
            )  # fmt: skip
    with torch.cuda.device_of(h_BmD):
        _mean_kernel[(1,)](losses, rights, loss, right, B, M=m, BLOCK=1024, num_warps=4)
    return loss, right, score_gradient


@torch.library.register_fake("fastselfie::location_head")
def _empty(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, m, _ = h_BmD.shape
    score_gradient = u_BD.new_empty((B if keep else 0, positions_ND.shape[0], tile(m)), dtype=torch.float32)
    return u_BD.new_empty((), dtype=torch.float32), u_BD.new_empty((), dtype=torch.int64), score_gradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u_BD, positions_ND, _, h_BmD, ctx.scale, _ = inputs
    ctx.save_for_backward(u_BD, positions_ND, h_BmD, output[2])
    ctx.set_materialize_grads(False)  # else one of zeros is made for what was kept


def _backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return None, None, None, None, None, None
    u_BD, positions_ND, h_BmD, score_gradient = ctx.saved_tensors
    du, dpositions, dh = location_head_backward(dloss, u_BD, positions_ND, h_BmD, score_gradient, ctx.scale)
    return du, dpositions, None, dh, None, None


torch.library.register_autograd("fastselfie::location_head", _backward, setup_context=_setup_context)


def location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`fastselfie.kernels.location_head`, always by the kernels."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (u_BD, positions_ND, h_BmD))
    loss, right, _ = _location_head(u_BD, positions_ND, places_Bm, h_BmD, scale, keep)
    return loss, right
