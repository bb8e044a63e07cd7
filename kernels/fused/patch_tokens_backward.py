"""The two passes backward of `patch_tokens`: the sums that batch norm's gradient needs, then the maps' gradient.

Between the two a SyncBN adds the sums up over processes. With dz the gradient before the ReLU and batch norm's affine
part, and x^ the normalised map, the sums are of dz and of dz * x^ (Ioffe and Szegedy 2015, section 3).

Bytes: the first pass reads the maps and the gradients of tokens and features; the second reads them again and writes
the maps' gradient. In the first, a program sees the patches of its images in the order of their places, so the position
vectors' gradient adds up in its registers: partial sums of stretches of images are added in a fixed order, no atomics.
Shapes: as in `patch_tokens`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastselfie.kernels.fused.indexing import MOST_REGISTERS, divide, rows_of
from fastselfie.kernels.fused.launch import cdiv, next_power_of_2
from fastselfie.kernels.operator import operator, refuse_second_derivatives

_ELEMENTS = 4096  # places times channels of a program of the first pass
_STRETCHES = 64  # programs along the images at most, a partial sum each
_ROWS, _CHANNELS, _WARPS = 16, 128, 4


@triton.jit
def batch_norm(statistics, weight, bias, eps, channel, D: tl.constexpr):
    """Mean, deviation, slope and offset of channels, fp32 each: z = (x - mean) * slope + offset."""
    valid = channel < D
    mean = tl.load(statistics + channel, mask=valid, other=0)
    deviation = tl.sqrt_rn(tl.load(statistics + D + channel, mask=valid, other=1) + eps)
    slope = tl.div_rn(tl.load(weight + channel, mask=valid, other=0), deviation)
    offset = tl.load(bias + channel, mask=valid, other=0)
    return mean, deviation, slope, offset


@triton.jit
def _gradient(dtokens, dfeatures, image, patch, there, channel, valid, N, VISIBLE: tl.constexpr, D: tl.constexpr):
    """Gradients of the pooled features, through tokens and through masked features: two fp32 (rows, channels), 0 where
    not ``there``; a patch has one of them.
    """
    seen = there & (patch < VISIBLE)
    source = dtokens + (image * (1 + VISIBLE) + 1 + patch)[:, None] * D + channel[None, :]
    from_tokens = tl.load(source, mask=seen[:, None] & valid, other=0).to(tl.float32)
    source = dfeatures + (image * (N - VISIBLE) + patch - VISIBLE)[:, None] * D + channel[None, :]
    from_features = tl.load(source, mask=(there & (patch >= VISIBLE))[:, None] & valid, other=0).to(tl.float32)
    return from_tokens, from_features


@triton.jit(do_not_specialize=["images", "steps"])  # one kernel for every batch
def _reduce_kernel(
    dtokens,  # (B, 1 + n, D)
    dfeatures,  # (B, m, D)
    maps,  # (B * N * HW, D)
    statistics,  # fp32 (2, D)
    weight,
    bias,
    inverse,  # int32 (B, N)
    partial_sums,  # fp32 (stretches * place blocks, 2, D)
    partial_positions,  # fp32 (stretches, N, D), or None
    images,  # B
    steps,  # images of a program
    eps,
    N: tl.constexpr,
    VISIBLE: tl.constexpr,
    HW: tl.constexpr,
    D: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    stretch = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    valid = (channel < D)[None, :]
    mean, deviation, slope, offset = batch_norm(statistics, weight, bias, eps, channel, D)
    mean, slope, offset = mean[None, :], slope[None, :], offset[None, :]

    sum_dz = tl.zeros([PLACES, CHANNELS], tl.float32)
    sum_dzx = tl.zeros([PLACES, CHANNELS], tl.float32)
    positions = tl.zeros([PLACES, CHANNELS], tl.float32)
    for step in tl.range(steps):
        image = stretch * steps + step
        there = (place < N) & (image < images)
        patch = place
        if partial_positions is not None:
            patch = tl.load(inverse + image * N + place, mask=there, other=0)
        from_tokens, from_features = _gradient(dtokens, dfeatures, image, patch, there, channel, valid, N, VISIBLE, D)
        positions += from_tokens
        dpooled = from_tokens + from_features
        source = maps + ((image * N + patch) * (HW * D))[:, None] + channel[None, :]
        for position in tl.static_range(HW):
            x = tl.load(source + position * D, mask=there[:, None] & valid, other=0).to(tl.float32) - mean
            dz = tl.where(x * slope + offset <= 0, 0.0, dpooled)
            sum_dz += dz
            sum_dzx += dz * x

    target = partial_sums + (stretch * tl.num_programs(1) + tl.program_id(1)) * (2 * D) + channel
    tl.store(target, tl.sum(sum_dz, axis=0) * (1.0 / HW), mask=channel < D)
    tl.store(target + D, tl.div_rn(tl.sum(sum_dzx, axis=0) * (1.0 / HW), deviation), mask=channel < D)
    if partial_positions is not None:
        target = partial_positions + (stretch * N + place)[:, None] * D + channel[None, :]
        tl.store(target, positions, mask=(place < N)[:, None] & valid)


@triton.jit(do_not_specialize=["rows"])
def _input_kernel(
    dtokens,
    dfeatures,
    maps,
    statistics,
    weight,
    bias,
    sums,  # fp32 (2, D): of dz and of dz * x^, over all processes
    dmaps,  # (B * N * HW, D)
    rows,  # B * N
    eps,
    share,  # 1 / values behind the statistics; 0: they are constants
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
    image, patch = divide(first, lane, N)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = (channel < D)[None, :]
    mean, deviation, slope, offset = batch_norm(statistics, weight, bias, eps, channel, D)
    mean, slope, offset = mean[None, :], slope[None, :], offset[None, :]
    mean_dz = (tl.load(sums + channel, mask=channel < D, other=0) * share)[None, :]
    mean_dzx = tl.div_rn(tl.load(sums + D + channel, mask=channel < D, other=0) * share, deviation)[None, :]

    from_tokens, from_features = _gradient(dtokens, dfeatures, image, patch, there, channel, valid, N, VISIBLE, D)
    dpooled = (from_tokens + from_features) * (1.0 / HW)
    at = ((image * N + patch) * (HW * D))[:, None] + channel[None, :]
    for position in tl.static_range(HW):
        x = tl.load(maps + at + position * D, mask=there[:, None] & valid, other=0).to(tl.float32) - mean
        dz = tl.where(x * slope + offset <= 0, 0.0, dpooled)
        dx = slope * (dz - mean_dz - x * mean_dzx)
        tl.store(dmaps + at + position * D, dx.to(dmaps.dtype.element_ty), mask=there[:, None] & valid)


@operator("patch_tokens_reduce")
def patch_tokens_reduce(
    dtokens: Tensor, dfeatures: Tensor, maps: Tensor, statistics_2D: Tensor, weight_D: Tensor, bias_D: Tensor,
    inverse_BN: Tensor, eps: float, with_positions: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first pass: sums of dz and of dz * x^, fp32 (2, D), and the position vectors' gradient, fp32 (N, D).

    The first sum is also the bias' gradient, the second the weight's. Without positions the last has no rows.
    """
    B, N = inverse_BN.shape
    D = maps.shape[1]
    places = min(next_power_of_2(N), 64)
    channels = min(_ELEMENTS // places, 128)
    place_blocks = cdiv(N, places)
    steps = max(1, cdiv(B, _STRETCHES))
    stretches = cdiv(B, steps)
    sums = maps.new_empty((stretches * place_blocks, 2, D), dtype=torch.float32)
    positions = maps.new_empty((stretches, N if with_positions else 0, D), dtype=torch.float32)
    if stretches:
        with torch.cuda.device_of(maps):  # a launch goes to the current device
            _reduce_kernel[(stretches, place_blocks, cdiv(D, channels))](
                dtokens.contiguous(), dfeatures.contiguous(), rows_of(maps), statistics_2D.contiguous(),
                weight_D.contiguous(), bias_D.contiguous(), inverse_BN.contiguous(), sums,
                positions if with_positions else None, B, steps, eps,
                N=N, VISIBLE=dtokens.shape[1] - 1, HW=maps.shape[2] * maps.shape[3], D=D,
                PLACES=places, CHANNELS=channels, num_warps=max(1, places * channels // 256),
                maxnreg=MOST_REGISTERS,
            )  # fmt: skip
    return sums.sum(dim=0, dtype=torch.float64).float(), positions.sum(dim=0)


@torch.library.register_fake("fastselfie::patch_tokens_reduce")
def _(
    dtokens: Tensor, dfeatures: Tensor, maps: Tensor, statistics_2D: Tensor, weight_D: Tensor, bias_D: Tensor,
    inverse_BN: Tensor, eps: float, with_positions: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    N = inverse_BN.shape[1] if with_positions else 0
    return torch.empty_like(statistics_2D), statistics_2D.new_empty((N, maps.shape[1]))


@operator("patch_tokens_input")
def patch_tokens_input(
    dtokens: Tensor, dfeatures: Tensor, maps: Tensor, statistics_2D: Tensor, weight_D: Tensor, bias_D: Tensor,
    sums_2D: Tensor, eps: float, count: int,
) -> Tensor:  # fmt: skip
    """The second pass: the maps' gradient, channels-last, of the maps' shape and dtype.

    Args:
        sums_2D: of the first pass, over all processes whose values the statistics are of. count: those values a
            channel; 0 when the statistics do not depend on the maps.
    """
    M, D, h, w = maps.shape
    dmaps = torch.empty_like(maps, memory_format=torch.channels_last)
    visible, masked = dtokens.shape[1] - 1, dfeatures.shape[1]
    if M:
        with torch.cuda.device_of(maps):
            _input_kernel[(cdiv(M, _ROWS), cdiv(D, _CHANNELS))](
                dtokens.contiguous(), dfeatures.contiguous(), rows_of(maps), statistics_2D.contiguous(),
                weight_D.contiguous(), bias_D.contiguous(), sums_2D.contiguous(), dmaps,
                M, eps, 1 / count if count else 0.0,
                N=visible + masked, VISIBLE=visible, HW=h * w, D=D, ROWS=_ROWS, CHANNELS=_CHANNELS,
                num_warps=_WARPS, maxnreg=MOST_REGISTERS,
            )  # fmt: skip
    return dmaps


@torch.library.register_fake("fastselfie::patch_tokens_input")
def _(
    dtokens: Tensor, dfeatures: Tensor, maps: Tensor, statistics_2D: Tensor, weight_D: Tensor, bias_D: Tensor,
    sums_2D: Tensor, eps: float, count: int,
) -> Tensor:  # fmt: skip
    return torch.empty_like(maps, memory_format=torch.channels_last)


refuse_second_derivatives("patch_tokens_reduce")
refuse_second_derivatives("patch_tokens_input")
