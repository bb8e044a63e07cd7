"""A pre-activation bottleneck (He et al. 2016b) of the fused convolutions, forward and backward.

What is kept for the backward are the raw maps between the convolutions; relu(batch norm) of them is computed again
where it is read. Only before a 3x3 convolution by taps it is written, and then kept.

Each batch norm's statistics are a tensor between two kernels, so that processes can meet there (SyncBN), and so do the
two sums that its gradient needs. The gradient through the statistics of a map is in that map's: sums and statistics
that go in or come out have none of their own.
Shapes: M maps, C channels in, K in the middle, O out, h x w positions, h' x w' after the stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastselfie.kernels.collective import added_up
from fastselfie.kernels.fused.convolution import convolution
from fastselfie.kernels.fused.convolution_backward import convolution_input, convolution_weight
from fastselfie.kernels.fused.normalisation import normalisation_input, normalisation_sums, normalise
from fastselfie.kernels.inductor import spare_descriptions
from fastselfie.kernels.moments import affine, moments, through_statistics

spare_descriptions()  # here, because a chain of these operators is what it takes


class Bottleneck(torch.autograd.Function):
    """See `bottleneck`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values1: Tensor, running2: Tensor | None, running3: Tensor | None,
        weight1: Tensor, bias1: Tensor, conv1: Tensor, weight2: Tensor, bias2: Tensor, conv2: Tensor,
        weight3: Tensor, bias3: Tensor, conv3: Tensor, shortcut: Tensor | None,
        stride: int, eps: float, processes: int, group: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        training = running2 is None
        dense = conv2.shape[1] != conv1.shape[0]

        def values(sums: Tensor, of: Tensor, running: Tensor | None) -> Tensor:
            if running is not None:
                return running
            return moments(added_up(sums, group) if group else sums, positions(of) * processes).float()

        first_2C = affine(values1, weight1, bias1, eps)
        y1, sums = convolution(x, first_2C, conv1.to(x.dtype), None, 1, training)
        values2 = values(sums, y1, running2)
        second_2K = affine(values2, weight2, bias2, eps)
        activated = None
        if dense:
            y2, sums = convolution(flat(y1), second_2K.repeat(1, 4), conv2.to(x.dtype), None, 1, training)
            y2, sums = unflat(y2), folded(sums)
        else:
            activated = normalise(y1, second_2K)
            y2, sums = convolution(activated, None, conv2.to(x.dtype), None, stride, training)
        values3 = values(sums, y2, running3)
        third_2K = affine(values3, weight3, bias3, eps)
        residual = x if shortcut is None else convolution(x, first_2C, shortcut.to(x.dtype), None, stride, False)[0]
        y, sums = convolution(y2, third_2K, conv3.to(x.dtype), residual, 1, training)

        ctx.save_for_backward(
            x, y1, y2, activated, values1, values2, values3,
            weight1, bias1, conv1, weight2, bias2, conv2, weight3, bias3, conv3, shortcut,
        )  # fmt: skip
        ctx.stride, ctx.eps, ctx.group = stride, eps, group
        ctx.processes = processes if training else 0
        ctx.mark_non_differentiable(sums, values2, values3)
        ctx.set_materialize_grads(False)  # no zeros for those
        return y, sums, values2, values3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 18
        (x, y1, y2, activated, values1, values2, values3,
         weight1, bias1, conv1, weight2, bias2, conv2, weight3, bias3, conv3, shortcut) = ctx.saved_tensors  # fmt: skip
        eps, dtype = ctx.eps, x.dtype
        dy = dy.contiguous(memory_format=torch.channels_last)
        first_2C, second_2K, third_2K = (
            affine(values, weight, bias, eps)
            for values, weight, bias in (
                (values1, weight1, bias1), (values2, weight2, bias2), (values3, weight3, bias3),
            )
        )  # fmt: skip

        def through(sums: Tensor, values: Tensor, weight: Tensor, of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return through_statistics(sums, values, weight, eps, positions(of) * ctx.processes, ctx.group)

        dz, sums = convolution_input(dy, conv3.to(dtype), y2, third_2K, values3[0], None, 1)
        dconv3 = convolution_weight(dy, y2, third_2K, 1)
        dweight3, dbias3, pull = through(sums, values3, weight3, y2)
        dy2 = normalisation_input(dz, y2, third_2K, pull, None)

        dz, dconv2, sums = _through_conv2(dy2, y1, activated, conv2.to(dtype), second_2K, values2[0], ctx.stride)
        dweight2, dbias2, pull = through(sums, values2, weight2, y1)
        dy1 = normalisation_input(dz, y1, second_2K, pull, None)

        branch = dshortcut = None
        if shortcut is not None:
            branch = (dy.permute(0, 2, 3, 1) @ shortcut.to(dtype).flatten(1)).permute(0, 3, 1, 2)
            dshortcut = convolution_weight(dy, x, first_2C, ctx.stride).view_as(shortcut).to(shortcut.dtype)
        dz, sums = convolution_input(dy1, conv1.to(dtype), x, first_2C, values1[0], branch, ctx.stride)
        dconv1 = convolution_weight(dy1, x, first_2C, 1)
        dweight1, dbias1, pull = through(sums, values1, weight1, x)
        dx = normalisation_input(dz, x, first_2C, pull, dy if shortcut is None else None)
        return (
            dx, None, None, None,
            dweight1, dbias1, dconv1.view_as(conv1).to(conv1.dtype),
            dweight2, dbias2, dconv2.view_as(conv2).to(conv2.dtype),
            dweight3, dbias3, dconv3.view_as(conv3).to(conv3.dtype), dshortcut,
            None, None, None, None,
        )  # fmt: skip


def _through_conv2(
    dy: Tensor, x: Tensor, activated: Tensor | None, weight: Tensor, affine_2K: Tensor, mean_K: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The second convolution backward: the gradient of its input, that of its weight, and the sums that the gradient of
    norm2 needs. The first is before the relu where the product is dense, and after it where ``activated`` was kept."""
    if activated is None:
        affine_24K = affine_2K.repeat(1, 4)
        dz, sums = convolution_input(flat(dy), weight, flat(x), affine_24K, mean_K.repeat(4), None, 1)
        return unflat(dz), convolution_weight(flat(dy), flat(x), affine_24K, 1), folded(sums)
    da, dweight, _ = torch.ops.aten.convolution_backward(
        dy, activated, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return da, dweight, normalisation_sums(da, x, affine_2K, mean_K)


def positions(maps: Tensor) -> int:
    """Values a channel."""
    return maps.shape[0] * maps.shape[2] * maps.shape[3]


def flat(maps: Tensor) -> Tensor:
    """2x2 maps (M, K, 2, 2) as one position of 4K channels, (M, 4K, 1, 1): a view where channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], 4 * maps.shape[1], 1, 1)


def unflat(maps: Tensor) -> Tensor:
    """The other way, channels-last."""
    return maps.reshape(maps.shape[0], 2, 2, maps.shape[1] // 4).permute(0, 3, 1, 2)


def folded(sums_24K: Tensor) -> Tensor:
    """Sums a channel from those of a channel at each of 4 positions."""
    return sums_24K.view(2, 4, -1).sum(dim=1)


def bottleneck(
    x: Tensor,
    values1_2C: Tensor,
    running: tuple[Tensor, Tensor] | None,
    norms: Sequence[tuple[Tensor, Tensor]],
    convolutions: tuple[Tensor, Tensor, Tensor],
    shortcut: Tensor | None,
    *,
    stride: int,
    eps: float,
    processes: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """conv3(relu(norm3(conv2(relu(norm2(conv1(relu(norm1(x)))))))) + shortcut.

    Args:
        x: fp32, bf16 or fp16 (M, C, h, w), channels-last or copied into that layout.
        values1_2C: fp32, mean and biased variance that norm1 normalises with.
        running: fp32 (2, K) each, what norm2 and norm3 normalise with; None: the batch's own statistics.
        norms: weight and bias, fp32, of the three.
        convolutions: (K, C, 1, 1), (K, K, 3, 3) or on 2x2 maps the dense (4K, 4K, 1, 1), and (O, K, 1, 1).
        shortcut: (O, C, 1, 1), of the relu of norm1; None: x itself.
        processes, group: how many processes the statistics are over, and the name of their group, empty for one.

    Returns:
        The map (M, O, h', w'), channels-last; its `channel_sums`, of this process alone, fp64 (2, O), (2, 0) with
        ``running``; and what norm2 and norm3 normalised with, fp32 (2, K).
    """
    parameters = [*norms[0], convolutions[0], *norms[1], convolutions[1], *norms[2], convolutions[2], shortcut]
    running2, running3 = running or (None, None)
    return Bottleneck.apply(x, values1_2C.detach(), running2, running3, *parameters, stride, eps, processes, group)
