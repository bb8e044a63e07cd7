"""Batch norm as vectors: from sums to mean and variance, from those to slope and offset, and the way back.

Shapes: D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.kernels.collective import added_up


def moments(sums_2D: Tensor, count: int) -> Tensor:
    """Mean and biased variance, fp64 (2, D), of ``count`` values a channel from their sum and sum of squares, fp64."""
    mean_D = sums_2D[0] / count
    variance_D = (sums_2D[1] / count - mean_D * mean_D).clamp(min=0)
    return torch.stack([mean_D, variance_D])


def affine(values_2D: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Slope and offset, fp32 (2, D), of a batch norm that normalises with mean and variance ``values_2D``."""
    mean_D, variance_D = values_2D.double()
    slope_D = weight_D.double() / (variance_D + eps).sqrt()
    return torch.stack([slope_D, bias_D.double() - mean_D * slope_D]).float()


def through_statistics(
    sums_2D: Tensor, values_2D: Tensor, weight_D: Tensor, eps: float, count: int, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a batch norm's weight and bias from the sums of dz and dz * (x - mean), and what the statistics take
    off the map's gradient, c and b of slope * dz - c - b * x (Ioffe and Szegedy 2015, section 3).

    Args:
        sums_2D: fp64, of this process. values_2D: mean and biased variance, fp32.
        count: values a channel behind the statistics; 0 when they are constants. group: over which they were added up,
            empty for this process alone.
    """
    mean, rstd = values_2D[0].double(), (values_2D[1].double() + eps).rsqrt()
    dbias, dweight = sums_2D[0], sums_2D[1] * rstd
    if not count:
        return dweight.to(weight_D.dtype), dbias.to(weight_D.dtype), torch.zeros_like(values_2D)
    total_2D = (added_up(sums_2D, group) if group else sums_2D) / count
    slope = weight_D.double() * rstd
    rate = slope * rstd * rstd * total_2D[1]
    pull_2D = torch.stack([slope * total_2D[0] - rate * mean, rate]).to(values_2D.dtype)
    return dweight.to(weight_D.dtype), dbias.to(weight_D.dtype), pull_2D
