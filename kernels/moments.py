"""Batch norm as vectors: from sums to mean and variance, and from those to slope and offset.

Shapes: D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
