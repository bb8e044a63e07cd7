"""`location_head` in Triton: queries, scores, cross entropy and right answers, without a score or query in memory.

Forward, one program an image: scores accumulate on chip over blocks of D; the m x m scores never leave it. For the
backward it keeps softmax(s) - 1, (B, m, m): computing that again would read the features, D / m times as large, once
more. Backward, one program a stretch of images and a block of D: features are read once, their gradient written once.
The position vectors' gradient adds up in registers over a program's images; the stretches' partial sums are added in a
fixed order, no atomics.

Products run on tensor cores in tf32. What does not fit into its 11 bits is split into two parts that do, each product
its own, so that scores and the gradients of u and e are as exact as in fp32; bf16 and fp16 features fit as they are.
Shapes: B images, N places, m masked patches, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_STRETCHES = 32  # programs along the images in the backward at most, a partial sum each


@triton.jit
def _halves(x):
    """``x``, fp32, as the nearest tf32 value and the rest, of which tf32 keeps all but the last bits."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def _dot(a, b, accumulator, B_FITS: tl.constexpr):
    """``accumulator`` + ``a`` @ ``b`` to fp32's accuracy; with ``B_FITS`` all values of ``b`` are tf32 values."""
    a_high, a_low = _halves(a)
    if B_FITS:
        accumulator = tl.dot(a_low, b, accumulator, input_precision="tf32")
        return tl.dot(a_high, b, accumulator, input_precision="tf32")
    b_high, b_low = _halves(b)
    accumulator = tl.dot(a_low, b_high, accumulator, input_precision="tf32")
    accumulator = tl.dot(a_high, b_low, accumulator, input_precision="tf32")
    return tl.dot(a_high, b_high, accumulator, input_precision="tf32")


@triton.jit
def _forward_kernel(
    u,  # (B, D)
    positions,  # (N, D)
    places,  # int64 (B, m)
    h,  # (B, m, D), strides below
    losses,  # fp32 (B,): sums over an image's questions
    rights,  # int32 (B,)
    residual,  # fp32 (B, m, m) or None: softmax(s) - 1
    scale,
    stride_image,
    stride_patch,
    M: tl.constexpr,
    D: tl.constexpr,
    QUESTIONS: tl.constexpr,  # m, padded to a tile
    FEATURES: tl.constexpr,
    FITS: tl.constexpr,  # features are tf32 values
):
    image = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, QUESTIONS)
    valid = index < M
    place = tl.load(places + image * M + index, mask=valid, other=0)
    scores = tl.zeros([QUESTIONS, QUESTIONS], tl.float32)
    for start in tl.range(0, D, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        inside = valid[:, None] & (feature < D)[None, :]
        summary = tl.load(u + image * D + feature, mask=feature < D, other=0).to(tl.float32)
        query = tl.load(positions + place[:, None] * D + feature[None, :], mask=inside, other=0).to(tl.float32)
        query += summary[None, :]
        source = h + image * stride_image + index[:, None] * stride_patch + feature[None, :]
        patches = tl.load(source, mask=inside, other=0).to(tl.float32)
        scores = _dot(query, tl.trans(patches), scores, FITS)

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
    if residual is not None:
        value = weights / total[:, None] - is_own.to(tl.float32)
        target = residual + image * (M * M) + index[:, None] * M + index[None, :]
        tl.store(target, value, mask=valid[:, None] & valid[None, :])


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


@triton.jit(do_not_specialize=["images", "steps"])  # one kernel for every batch
def _backward_kernel(
    dloss,  # fp32 scalar
    u,
    positions,
    places,
    h,
    residual,
    du,  # (B, D)
    dh,  # (B, m, D)
    partial,  # fp32 (stretches, N, D)
    images,  # B
    steps,  # images of a program
    scale,  # over B * m
    stride_image,
    stride_patch,
    N: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    PLACES: tl.constexpr,
    QUESTIONS: tl.constexpr,
    FEATURES: tl.constexpr,
    FITS: tl.constexpr,
    ROUGH: tl.constexpr,  # dh is bf16: one tf32 product is exact enough for it
):
    stretch = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    here = tl.program_id(2) * PLACES + tl.arange(0, PLACES)
    index = tl.arange(0, QUESTIONS)
    scale = scale * tl.load(dloss)
    dpositions = tl.zeros([PLACES, FEATURES], tl.float32)
    for step in tl.range(steps):
        image = stretch * steps + step
        valid = (index < M) & (image < images)
        inside = valid[:, None] & (feature < D)[None, :]
        place = tl.load(places + image * M + index, mask=valid, other=-1)
        source = h + image * stride_image + index[:, None] * stride_patch + feature[None, :]
        patches = tl.load(source, mask=inside, other=0).to(tl.float32)
        if tl.program_id(2) == 0:
            at = residual + image * (M * M) + index[:, None] * M + index[None, :]
            dscores = tl.load(at, mask=valid[:, None] & valid[None, :], other=0) * scale
            query = tl.load(positions + place[:, None] * D + feature[None, :], mask=inside, other=0).to(tl.float32)
            here_u = (feature < D) & (image < images)
            query += tl.load(u + image * D + feature, mask=here_u, other=0).to(tl.float32)[None, :]
            dpatches = tl.zeros([QUESTIONS, FEATURES], tl.float32)
            if ROUGH:
                dscores_high, _ = _halves(dscores)
                query_high, _ = _halves(query)
                dpatches = tl.dot(tl.trans(dscores_high), query_high, dpatches, input_precision="tf32")
            else:
                dpatches = _dot(tl.trans(dscores), query, dpatches, False)
            target = dh + image * (M * D) + index[:, None] * D + feature[None, :]
            tl.store(target, dpatches.to(dh.dtype.element_ty), mask=inside)
            dsummary = tl.sum(tl.sum(dscores, axis=0)[:, None] * patches, axis=0)
            tl.store(du + image * D + feature, dsummary.to(du.dtype.element_ty), mask=here_u)
        # The row of scores that asked about each place; none where the place was visible.
        asked = tl.max(tl.where(place[None, :] == here[:, None], index[None, :], -1), axis=1)
        at = residual + image * (M * M) + asked[:, None] * M + index[None, :]
        dscores = tl.load(at, mask=(asked >= 0)[:, None] & valid[None, :], other=0) * scale
        dpositions = _dot(dscores, patches, dpositions, FITS)
    target = partial + (stretch * N + here)[:, None] * D + feature[None, :]
    tl.store(target, dpositions, mask=(here < N)[:, None] & (feature < D)[None, :])


@torch.library.custom_op("fastselfie::location_head", mutates_args=())
def _location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, right answers, and with ``keep`` what the backward needs."""
    B, m, D = h_BmD.shape
    loss, right, residual = _empty(u_BD, positions_ND, places_Bm, h_BmD, scale, keep)
    losses, rights = u_BD.new_empty(B, dtype=torch.float32), u_BD.new_empty(B, dtype=torch.int32)
    h_BmD = _rows_together(h_BmD)
    if B:
        questions = _tile(m)
        _forward_kernel[(B,)](
            u_BD.contiguous(), positions_ND.contiguous(), places_Bm.contiguous(), h_BmD, losses, rights,
            residual if keep else None, scale, h_BmD.stride(0), h_BmD.stride(1),
            M=m, D=D, QUESTIONS=questions, FEATURES=64, FITS=h_BmD.dtype != torch.float32,
            num_warps=1 if questions == 16 else 4,
        )  # fmt: skip
    _mean_kernel[(1,)](losses, rights, loss, right, B, M=m, BLOCK=1024, num_warps=4)
    return loss, right, residual


@_location_head.register_fake
def _empty(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, m, _ = h_BmD.shape
    residual = u_BD.new_empty((B if keep else 0, m, m), dtype=torch.float32)
    return u_BD.new_empty((), dtype=torch.float32), u_BD.new_empty((), dtype=torch.int64), residual


@torch.library.custom_op("fastselfie::location_head_backward", mutates_args=())
def _location_head_backward(
    dloss: Tensor, u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, residual: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, e and h in their dtypes."""
    B, m, D = h_BmD.shape
    N = positions_ND.shape[0]
    du, _, dh = _empty_backward(dloss, u_BD, positions_ND, places_Bm, h_BmD, residual, scale)
    h_BmD = _rows_together(h_BmD)
    steps = max(1, triton.cdiv(B, _STRETCHES))
    stretches = triton.cdiv(B, steps)
    partial = u_BD.new_empty((stretches, N, D), dtype=torch.float32)
    if B:
        questions, places, features = _tile(m), min(_tile(N), 64), 64
        _backward_kernel[(stretches, triton.cdiv(D, features), triton.cdiv(N, places))](
            dloss, u_BD.contiguous(), positions_ND.contiguous(), places_Bm.contiguous(), h_BmD, residual, du, dh,
            partial, B, steps, scale / (B * m), h_BmD.stride(0), h_BmD.stride(1),
            N=N, M=m, D=D, PLACES=places, QUESTIONS=questions, FEATURES=features,
            FITS=h_BmD.dtype != torch.float32, ROUGH=h_BmD.dtype == torch.bfloat16, num_warps=4,
        )  # fmt: skip
    return du, partial.sum(dim=0).to(positions_ND.dtype), dh


@_location_head_backward.register_fake
def _empty_backward(
    dloss: Tensor, u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, residual: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return u_BD.new_empty(u_BD.shape), positions_ND.new_empty(positions_ND.shape), h_BmD.new_empty(h_BmD.shape)


def _tile(size: int) -> int:
    """The side of a product's tile that ``size`` fits into."""
    return max(16, triton.next_power_of_2(size))


def _rows_together(h_BmD: Tensor) -> Tensor:
    return h_BmD if h_BmD.stride(2) == 1 else h_BmD.contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u_BD, positions_ND, places_Bm, h_BmD, ctx.scale, _ = inputs
    ctx.save_for_backward(u_BD, positions_ND, places_Bm, h_BmD, output[2])


def _backward(ctx: Any, dloss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    u_BD, positions_ND, places_Bm, h_BmD, residual = ctx.saved_tensors
    du, dpositions, dh = _location_head_backward(dloss, u_BD, positions_ND, places_Bm, h_BmD, residual, ctx.scale)
    return du, dpositions, None, dh, None, None


_location_head.register_autograd(_backward, setup_context=_setup_context)


def location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`fastselfie.kernels.location_head`, always by the kernels."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (u_BD, positions_ND, h_BmD))
    loss, right, _ = _location_head(u_BD, positions_ND, places_Bm, h_BmD, scale, keep)
    return loss, right
