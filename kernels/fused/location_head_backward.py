"""The backward of `location_head`: two kernels of one program a stretch of images and a block of D.

One writes the features' gradient, the other reads the features. The position vectors' gradient adds up in registers
over a program's images; the stretches' partial sums are added in a fixed order, no atomics.

Bytes: h is read once, dh written once; what the forward kept is read by both kernels, from cache but for the first
block of D.
Shapes: B images, N places, m masked patches, D features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.launch import cdiv
from fastselfie.kernels.fused.products import arithmetic, dot, dot_rough, tile, wide_products
from fastselfie.kernels.operator import operator, refuse_second_derivatives

_STRETCHES = 32  # programs along the images at most, a partial sum each


@triton.jit(do_not_specialize=["images", "steps"])  # one kernel for every batch
def _features_kernel(
    dloss,  # fp32 scalar
    u,
    positions,
    score_gradient,
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
        at = score_gradient + image * (N * QUESTIONS) + here[:, None] * QUESTIONS + index[None, :]
        dscores = tl.load(at, mask=(here < N)[:, None] & there, other=0)
        summary = tl.load(u + image * D + feature, mask=(feature < D) & there, other=0).to(tl.float32)
        dpatches = summary[:, None] * tl.sum(dscores, axis=0)[None, :]
        dpatches = dot_rough(vectors, dscores, dpatches, DOT, PARTS) * scale
        target = dh + image * (M * D) + index[:, None] * D + feature[None, :]
        inside = ((index < M) & there)[:, None] & (feature < D)[None, :]
        tl.store(target, tl.trans(dpatches.to(dh.dtype.element_ty)), mask=inside)


@triton.jit(do_not_specialize=["images", "steps"])  # one kernel for every batch
def _queries_kernel(
    dloss,  # fp32 scalar
    h,
    score_gradient,
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
        at = score_gradient + image * (N * QUESTIONS) + here[:, None] * QUESTIONS + index[None, :]
        dscores = tl.load(at, mask=(here < N)[:, None] & there, other=0)
        inside = ((index < M) & there)[:, None] & (feature < D)[None, :]
        source = h + image * stride_image + index.to(tl.int64)[:, None] * stride_patch + feature[None, :]
        patches = tl.load(source, mask=inside, other=0)
        dsummary = tl.sum(patches.to(tl.float32) * tl.sum(dscores, axis=0)[:, None], axis=0) * scale
        tl.store(du + image * D + feature, dsummary.to(du.dtype.element_ty), mask=(feature < D) & there)
        dpositions = dot(dscores, patches.to(DOT), dpositions, PARTS)
    target = partial + (stretch * N + here)[:, None] * D + feature[None, :]
    tl.store(target, dpositions * scale, mask=(here < N)[:, None] & (feature < D)[None, :])


@operator("location_head_backward")
def location_head_backward(
    dloss: Tensor, u_BD: Tensor, positions_ND: Tensor, h_BmD: Tensor, score_gradient: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, e and h in their dtypes."""
    (B, m, D), N = h_BmD.shape, positions_ND.shape[0]
    du, _, dh = _empty_backward(dloss, u_BD, positions_ND, h_BmD, score_gradient, scale)
    h_BmD = h_BmD if h_BmD.stride(2) == 1 else h_BmD.contiguous()
    steps = max(1, cdiv(B, _STRETCHES))
    stretches = cdiv(B, steps)
    partial = u_BD.new_empty((stretches, N, D), dtype=torch.float32)
    if B:
        u_BD, positions_ND, score_gradient = u_BD.contiguous(), positions_ND.contiguous(), score_gradient.contiguous()
        shape = {"N": N, "M": m, "D": D, "PLACES": tile(N), "QUESTIONS": tile(m), **arithmetic(h_BmD.dtype)}
        over = scale / (B * m)
        with torch.cuda.device_of(h_BmD):  # a launch goes to the current device
            # More features do not fit into registers in tf32, nor where products read their operands from registers.
            features = 128 if h_BmD.dtype == torch.bfloat16 and (tile(m) == 16 or wide_products()) else 64
            grid = (stretches, cdiv(D, features))
            _features_kernel[grid](
                dloss, u_BD, positions_ND, score_gradient, dh, B, steps, over, **shape, FEATURES=features, num_warps=4
            )
            _queries_kernel[grid](
                dloss, h_BmD, score_gradient, du, partial, B, steps, over, h_BmD.stride(0), h_BmD.stride(1),
                **shape, FEATURES=features, num_warps=4,
            )  # fmt: skip
    return du, partial.sum(dim=0).to(positions_ND.dtype), dh


@torch.library.register_fake("fastselfie::location_head_backward")
def _empty_backward(
    dloss: Tensor, u_BD: Tensor, positions_ND: Tensor, h_BmD: Tensor, score_gradient: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return u_BD.new_empty(u_BD.shape), positions_ND.new_empty(positions_ND.shape), h_BmD.new_empty(h_BmD.shape)


refuse_second_derivatives("location_head_backward")
