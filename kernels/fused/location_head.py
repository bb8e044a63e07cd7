"""`location_head` in Triton: queries, scores, cross entropy and right answers, without a score or query in memory.

Forward, one program an image: scores add up on chip over blocks of D, and never leave it. For the backward it keeps
softmax(s) - 1 of each masked place: computing that again would read the features, D / m times as large, once more.
Backward, two kernels of one program a stretch of images and a block of D: one writes the features' gradient, the other
reads the features. The position vectors' gradient adds up in registers over a program's images; the stretches' partial
sums are added in a fixed order, no atomics.

Bytes: forward u, places and h once, and the rows of e (from cache); backward h once, dh once, the residual twice.
Products run on tensor cores, whose operands are narrow. An operand that does not fit is split into parts that do, each
part its own product, so that scores and the gradients of u and e are as exact as in fp32: three bf16 or two fp16 parts
against 16-bit features, which fit as they are; two tf32 parts of each operand where features are fp32.
Shapes: B images, N places, m masked patches, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.dispatch import interpreted

_STRETCHES = 32  # programs along the images in the backward at most, a partial sum each


@triton.jit
def _halves(x):
    """``x``, fp32, as the nearest tf32 value and the rest, of which tf32 keeps all but the last bits."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def _dot(a, b, accumulator, PARTS: tl.constexpr, SPLIT: tl.constexpr):
    """``accumulator`` + ``a`` @ ``b`` to fp32's accuracy.

    With PARTS, the operand that SPLIT names is fp32 and taken as the sum of that many values of the other's 16-bit
    dtype. Else both are fp32.
    """
    if PARTS > 0:
        rest = a if SPLIT == "a" else b
        for _ in tl.static_range(PARTS):
            if SPLIT == "a":
                part = rest.to(b.dtype)
                accumulator = tl.dot(part, b, accumulator)
            else:
                part = rest.to(a.dtype)
                accumulator = tl.dot(a, part, accumulator)
            rest -= part.to(tl.float32)
    else:
        a_high, a_low = _halves(a)
        b_high, b_low = _halves(b)
        accumulator = tl.dot(a_low, b_high, accumulator, input_precision="tf32")
        accumulator = tl.dot(a_high, b_low, accumulator, input_precision="tf32")
        accumulator = tl.dot(a_high, b_high, accumulator, input_precision="tf32")
    return accumulator


@triton.jit
def _dot_rough(a, b, accumulator, DOT: tl.constexpr, PARTS: tl.constexpr):
    """The same of two fp32 operands; with PARTS only as exact as a 16-bit result needs: two parts of each."""
    if PARTS > 0:
        a_high, b_high = a.to(DOT), b.to(DOT)
        accumulator = tl.dot((a - a_high.to(tl.float32)).to(DOT), b_high, accumulator)
        accumulator = tl.dot(a_high, (b - b_high.to(tl.float32)).to(DOT), accumulator)
        accumulator = tl.dot(a_high, b_high, accumulator)
    else:
        accumulator = _dot(a, b, accumulator, 0, "a")
    return accumulator


@triton.jit
def _forward_kernel(
    u,  # (B, D)
    positions,  # (N, D)
    places,  # int64 (B, m)
    h,  # (B, m, D), strides below
    losses,  # fp32 (B,): sums over an image's questions
    rights,  # int32 (B,)
    residual,  # fp32 (B, N, QUESTIONS) or None: softmax(s) - 1, the row of each masked place, else 0
    scale,
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
    place = tl.load(places + image * M + index, mask=valid, other=0)
    scores = tl.zeros([QUESTIONS, QUESTIONS], tl.float32)
    for start in tl.range(0, D, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        inside = valid[:, None] & (feature < D)[None, :]
        summary = tl.load(u + image * D + feature, mask=feature < D, other=0).to(tl.float32)
        query = tl.load(positions + place[:, None] * D + feature[None, :], mask=inside, other=0).to(tl.float32)
        query += summary[None, :]
        source = h + image * stride_image + index[:, None] * stride_patch + feature[None, :]
        patches = tl.load(source, mask=inside, other=0).to(DOT)
        scores = _dot(query, tl.trans(patches), scores, PARTS, "a")

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
        value = tl.where(valid[None, :], weights / total[:, None] - is_own.to(tl.float32), 0.0)
        target = residual + image * (N * QUESTIONS)
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


@triton.jit(do_not_specialize=["images", "steps"])  # one kernel for every batch
def _features_kernel(
    dloss,  # fp32 scalar
    u,
    positions,
    residual,
    dh,  # (B, m, D)
    images,  # B
    steps,  # images of a program
    scale,  # over B * m
    N: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    PLACES: tl.constexpr,
    QUESTIONS: tl.constexpr,
    FEATURES: tl.constexpr,
    DOT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """dh_k = sum over places j of ds_jk (u + e_j), of some images and a block of D."""
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    here = tl.arange(0, PLACES)
    index = tl.arange(0, QUESTIONS)
    known = (feature < D)[:, None] & (here < N)[None, :]
    vectors = tl.load(positions + here[None, :] * D + feature[:, None], mask=known, other=0).to(tl.float32)
    scale = scale * tl.load(dloss)
    for step in tl.range(steps):
        image = tl.program_id(0).to(tl.int64) * steps + step
        there = image < images
        # All places are looked at: the rows of those that were not masked are 0.
        at = residual + image * (N * QUESTIONS) + here[:, None] * QUESTIONS + index[None, :]
        dscores = tl.load(at, mask=(here < N)[:, None] & there, other=0)
        summary = tl.load(u + image * D + feature, mask=(feature < D) & there, other=0).to(tl.float32)
        dpatches = summary[:, None] * tl.sum(dscores, axis=0)[None, :]
        dpatches = _dot_rough(vectors, dscores, dpatches, DOT, PARTS) * scale
        target = dh + image * (M * D) + index[:, None] * D + feature[None, :]
        inside = ((index < M) & there)[:, None] & (feature < D)[None, :]
        tl.store(target, tl.trans(dpatches.to(dh.dtype.element_ty)), mask=inside)


@triton.jit(do_not_specialize=["images", "steps"])  # one kernel for every batch
def _queries_kernel(
    dloss,  # fp32 scalar
    h,
    residual,
    du,  # (B, D)
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
    DOT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """dv_j = sum over patches k of ds_jk h_k: du sums it over an image's places, de over the images."""
    stretch = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    here = tl.arange(0, PLACES)
    index = tl.arange(0, QUESTIONS)
    scale = scale * tl.load(dloss)
    dpositions = tl.zeros([PLACES, FEATURES], tl.float32)
    for step in tl.range(steps):
        image = stretch * steps + step
        there = image < images
        at = residual + image * (N * QUESTIONS) + here[:, None] * QUESTIONS + index[None, :]
        dscores = tl.load(at, mask=(here < N)[:, None] & there, other=0)
        inside = ((index < M) & there)[:, None] & (feature < D)[None, :]
        source = h + image * stride_image + index[:, None] * stride_patch + feature[None, :]
        patches = tl.load(source, mask=inside, other=0)
        dsummary = tl.sum(patches.to(tl.float32) * tl.sum(dscores, axis=0)[:, None], axis=0) * scale
        tl.store(du + image * D + feature, dsummary.to(du.dtype.element_ty), mask=(feature < D) & there)
        dpositions = _dot(dscores, patches.to(DOT), dpositions, PARTS, "a")
    target = partial + (stretch * N + here)[:, None] * D + feature[None, :]
    tl.store(target, dpositions * scale, mask=(here < N)[:, None] & (feature < D)[None, :])


@torch.library.custom_op("fastselfie::location_head", mutates_args=())
def _location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, right answers, and with ``keep`` what the backward needs."""
    (B, m, D), N = h_BmD.shape, positions_ND.shape[0]
    loss, right, residual = _empty(u_BD, positions_ND, places_Bm, h_BmD, scale, keep)
    losses, rights = u_BD.new_empty(B, dtype=torch.float32), u_BD.new_empty(B, dtype=torch.int32)
    h_BmD = _rows_together(h_BmD)
    if B:
        _forward_kernel[(B,)](
            u_BD.contiguous(), positions_ND.contiguous(), places_Bm.contiguous(), h_BmD, losses, rights,
            residual if keep else None, scale, h_BmD.stride(0), h_BmD.stride(1),
            N=N, M=m, D=D, PLACES=_tile(N), QUESTIONS=_tile(m), **_arithmetic(h_BmD.dtype),
            FEATURES=64 if _tile(m) == 16 or h_BmD.dtype != torch.float32 else 32, num_warps=_tile(m) // 16,
        )  # fmt: skip
    _mean_kernel[(1,)](losses, rights, loss, right, B, M=m, BLOCK=1024, num_warps=4)
    return loss, right, residual


@_location_head.register_fake
def _empty(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, m, _ = h_BmD.shape
    residual = u_BD.new_empty((B if keep else 0, positions_ND.shape[0], _tile(m)), dtype=torch.float32)
    return u_BD.new_empty((), dtype=torch.float32), u_BD.new_empty((), dtype=torch.int64), residual


@torch.library.custom_op("fastselfie::location_head_backward", mutates_args=())
def _location_head_backward(
    dloss: Tensor, u_BD: Tensor, positions_ND: Tensor, h_BmD: Tensor, residual: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, e and h in their dtypes."""
    (B, m, D), N = h_BmD.shape, positions_ND.shape[0]
    du, _, dh = _empty_backward(dloss, u_BD, positions_ND, h_BmD, residual, scale)
    h_BmD = _rows_together(h_BmD)
    steps = max(1, triton.cdiv(B, _STRETCHES))
    stretches = triton.cdiv(B, steps)
    partial = u_BD.new_empty((stretches, N, D), dtype=torch.float32)
    if B:
        u_BD, positions_ND, residual = u_BD.contiguous(), positions_ND.contiguous(), residual.contiguous()
        features = 64 if h_BmD.dtype == torch.float32 else 128
        grid = (stretches, triton.cdiv(D, features))
        shape = {"N": N, "M": m, "D": D, "PLACES": _tile(N), "QUESTIONS": _tile(m), **_arithmetic(h_BmD.dtype)}
        over = scale / (B * m)
        _features_kernel[grid](
            dloss, u_BD, positions_ND, residual, dh, B, steps, over, **shape, FEATURES=features, num_warps=4
        )
        _queries_kernel[grid](
            dloss, h_BmD, residual, du, partial, B, steps, over, h_BmD.stride(0), h_BmD.stride(1),
            **shape, FEATURES=features, num_warps=4,
        )  # fmt: skip
    return du, partial.sum(dim=0).to(positions_ND.dtype), dh


@_location_head_backward.register_fake
def _empty_backward(
    dloss: Tensor, u_BD: Tensor, positions_ND: Tensor, h_BmD: Tensor, residual: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return u_BD.new_empty(u_BD.shape), positions_ND.new_empty(positions_ND.shape), h_BmD.new_empty(h_BmD.shape)


def _arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """In what products are computed: 16-bit features as they are, against three parts of bf16 or two of fp16.

    The interpreter has no bf16 arithmetic (its products would be wrong): there bf16 goes the way of fp32.
    """
    if dtype == torch.float16:
        return {"DOT": tl.float16, "PARTS": 2}
    if dtype == torch.bfloat16 and not interpreted():
        return {"DOT": tl.bfloat16, "PARTS": 3}
    return {"DOT": tl.float32, "PARTS": 0}


def _tile(size: int) -> int:
    """The side of a product's tile that ``size`` fits into."""
    return max(16, triton.next_power_of_2(size))


def _rows_together(h_BmD: Tensor) -> Tensor:
    return h_BmD if h_BmD.stride(2) == 1 else h_BmD.contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u_BD, positions_ND, _, h_BmD, ctx.scale, _ = inputs
    ctx.save_for_backward(u_BD, positions_ND, h_BmD, output[2])


def _backward(ctx: Any, dloss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    u_BD, positions_ND, h_BmD, residual = ctx.saved_tensors
    du, dpositions, dh = _location_head_backward(dloss, u_BD, positions_ND, h_BmD, residual, ctx.scale)
    return du, dpositions, None, dh, None, None


_location_head.register_autograd(_backward, setup_context=_setup_context)


def location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`fastselfie.kernels.location_head`, always by the kernels."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (u_BD, positions_ND, h_BmD))
    loss, right, _ = _location_head(u_BD, positions_ND, places_Bm, h_BmD, scale, keep)
    return loss, right
