"""What a batch norm normalises with, as a tensor between two kernels, and a batch norm with statistics over processes.

Shapes: M maps, D channels, h x w positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastselfie.kernels import channel_sums
from fastselfie.kernels.collective import added_up
from fastselfie.kernels.moments import affine, moments, through_statistics

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and biased variance, fp32 (2, D), and what they are of.

    Attributes:
        count: values a channel that they are of, those of the group together; 0: constants, no gradient goes through.
        group: the process group's name when a `SynchronisedNorm` took them over several processes, else empty.
    """

    values_2D: Tensor
    count: int
    group: str


def statistics(norm: _BatchNorm, maps: Tensor, sums_2D: Tensor | None = None) -> Statistics:
    """In training those of ``maps``, (M, D, h, w), which also update the running ones as a batch norm's forward does;
    in evaluation the running ones.

    Args:
        sums_2D: the maps' `channel_sums` in this process, where the kernel that made them gave these too.
    """
    running_mean, running_var = norm.running_mean, norm.running_var
    assert running_mean is not None
    assert running_var is not None
    if not norm.training:
        return Statistics(values_2D=torch.stack([running_mean, running_var]), count=0, group="")
    group, processes = synchronisation(norm)
    if sums_2D is None:
        sums_2D = channel_sums(maps, group=group)
    elif group:
        sums_2D = added_up(sums_2D, group)
    count = maps.shape[0] * maps.shape[2] * maps.shape[3] * processes
    values_2D = moments(sums_2D, count).to(running_mean.dtype)
    update(norm, values_2D[0], values_2D[1], count)
    return Statistics(values_2D=values_2D, count=count, group=group)


@torch.no_grad()
def update(norm: _BatchNorm, mean_D: Tensor, var_D: Tensor, count: int) -> None:
    """Move the running statistics towards those of a batch of ``count`` values a channel, its mean and biased variance,
    as a batch norm's forward."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    norm.running_mean.lerp_(mean_D.to(norm.running_mean.dtype), norm.momentum)
    unbiased_D = var_D * (count / max(count - 1, 1))
    norm.running_var.lerp_(unbiased_D.to(norm.running_var.dtype), norm.momentum)


def synchronisation(norm: _BatchNorm) -> tuple[str, int]:
    """The name of the group that a synchronised norm meets in and how many processes that is; empty and 1 where there
    is nobody to meet."""
    if not isinstance(norm, SynchronisedNorm) or not dist.is_initialized() or dist.get_world_size() == 1:
        return "", 1
    assert dist.group.WORLD is not None
    return dist.group.WORLD.group_name, dist.get_world_size()


class SynchronisedNorm(nn.BatchNorm2d):
    """A batch norm whose statistics in training are over all processes.

    Torch's own waits for the device in every pass and breaks torch.compile's graph; this one does neither.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(M, D, h, w) normalised, of the same dtype."""
        if not self.training or synchronisation(self)[1] == 1:
            return super().forward(input)
        its = statistics(self, input.detach())
        y: Tensor = _Normalise.apply(input, self.weight, self.bias, its.values_2D, its.count, self.eps, its.group)
        return y


class _Normalise(torch.autograd.Function):
    """Batch norm with given statistics; the map's gradient includes the part through them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_D: Tensor, bias_D: Tensor, values_2D: Tensor, count: int, eps: float, group: str
    ) -> Tensor:
        ctx.save_for_backward(x, weight_D, bias_D, values_2D)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        slope_D11, offset_D11 = affine(values_2D, weight_D, bias_D, eps)[:, :, None, None]
        y = x * slope_D11 + offset_D11
        # Torch 2.11 compiles what is the same tensor as another, `y.to(y.dtype)` or `y.add_(...)`, to gradients of 0.
        return y if y.dtype == x.dtype else y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, bias_D, values_2D = ctx.saved_tensors
        deviation = x - values_2D[0, :, None, None]
        sums_2D = torch.stack([part.sum(dim=(0, 2, 3), dtype=torch.float64) for part in (g, deviation.mul_(g))])
        dweight_D, dbias_D, pull_2D = through_statistics(sums_2D, values_2D, weight_D, ctx.eps, ctx.count, ctx.group)
        slope_D11 = affine(values_2D, weight_D, bias_D, ctx.eps)[0, :, None, None]
        constant_D11, rate_D11 = pull_2D[:, :, None, None]
        dx = (g * slope_D11).sub_(x * rate_D11).sub_(constant_D11).to(x.dtype)
        return dx, dweight_D, dbias_D, None, None, None, None


def synchronised(network: N) -> N:
    """``network``, whose batch norms become `SynchronisedNorm`, in place: parameters and buffers are the same."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedNorm
    return network
