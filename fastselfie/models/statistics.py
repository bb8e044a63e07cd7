"""What a batch norm normalises with, as a tensor between two kernels.

Shapes: M maps, D channels, h x w positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastselfie.kernels import channel_sums


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and biased variance, fp32 (2, D), and what they are of.

    Attributes:
        count: values a channel that they are of, those of the group together; 0: constants, no gradient goes through.
        group: the process group's name when a SyncBN took them over several processes, else empty.
    """

    values_2D: Tensor
    count: int
    group: str


def statistics(norm: _BatchNorm, maps: Tensor) -> Statistics:
    """In training those of ``maps``, (M, D, h, w), which also update the running ones as a batch norm's forward does;
    in evaluation the running ones."""
    running_mean, running_var = norm.running_mean, norm.running_var
    assert running_mean is not None
    assert running_var is not None
    if not norm.training:
        return Statistics(values_2D=torch.stack([running_mean, running_var]), count=0, group="")
    group = _group(norm)
    sums_2D = channel_sums(maps, group=group)
    count = maps.shape[0] * maps.shape[2] * maps.shape[3] * (dist.get_world_size() if group else 1)
    mean_D = sums_2D[0] / count
    variance_D = (sums_2D[1] / count - mean_D * mean_D).clamp(min=0)
    values_2D = torch.stack([mean_D, variance_D]).to(running_mean.dtype)
    with torch.no_grad():
        unbiased_D = values_2D[1] * (count / max(count - 1, 1))
        assert norm.momentum is not None
        running_mean.lerp_(values_2D[0], norm.momentum)
        running_var.lerp_(unbiased_D, norm.momentum)
    return Statistics(values_2D=values_2D, count=count, group=group)


def _group(norm: _BatchNorm) -> str:
    """The name of the group that a SyncBN meets in; empty where there is nobody to meet."""
    if not isinstance(norm, nn.SyncBatchNorm) or not dist.is_initialized() or dist.get_world_size() == 1:
        return ""
    assert norm.process_group is None, "a group of its own is not asked for anywhere"
    assert dist.group.WORLD is not None
    return dist.group.WORLD.group_name
