"""Batch norm's running statistics: updated once an optimiser step, averaged over the groups of the global batch.

A group is one micro-batch of one process: batch norm normalises by its statistics alone. Every group keeps a running
average of its own; their mean is what the network is evaluated with. The average is linear, so that mean equals the
running average of the groups' mean, and processes need to meet only before an evaluation or a checkpoint. Two
processes and one process with two micro-batches do the same arithmetic, bit for bit.

Shapes: A groups of this process, C channels of all batch norms together (means first, then variances: 2C values).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastselfie.training.world import World

MOMENTUM = 0.1


class RunningStatistics:
    """Takes the running statistics of a network's batch norms over.

    With momentum 1 a batch norm's buffers hold the latest batch's own mean and unbiased variance: `collect` reads them.
    """

    def __init__(self, network: nn.Module, groups: int) -> None:
        self._norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        for norm in self._norms:
            norm.momentum = 1.0
        self.values_A2C = self._buffers().expand(groups, -1).clone()

    def collect(self, group: int) -> None:
        """Account for the batch that just went forward in training mode as this process's ``group``."""
        self.values_A2C[group].lerp_(self._buffers(), MOMENTUM)

    def merge_into_network(self, world: World) -> None:
        """Write the mean over all groups of all processes into the batch norms' buffers, ready for evaluation.

        Training is undisturbed: its next forward pass overwrites the buffers.
        """
        mean_2C = world.sum_(self.values_A2C.sum(dim=0) / self.values_A2C.shape[0]) / world.size
        sizes = [buffer.numel() for buffer in self._tensors()]
        for buffer, value in zip(self._tensors(), mean_2C.split(sizes), strict=True):
            buffer.copy_(value)

    def state(self, world: World) -> Tensor:
        """Every group's values in order of rank: (groups of all processes, 2C), on the CPU."""
        return world.gather(self.values_A2C).flatten(0, 1).cpu()

    def load(self, state: Tensor, world: World) -> None:
        """Take over `state`. A run that now has another number of groups starts them all from the mean."""
        A = self.values_A2C.shape[0]
        if state.shape[0] == A * world.size:
            own = state[world.rank * A : (world.rank + 1) * A]
        else:
            own = state.mean(dim=0, keepdim=True).expand(A, -1)
        self.values_A2C.copy_(own)

    def _tensors(self) -> list[Tensor]:
        means = [norm.running_mean for norm in self._norms]
        variances = [norm.running_var for norm in self._norms]
        return [tensor for tensor in means + variances if tensor is not None]

    def _buffers(self) -> Tensor:
        return torch.cat(self._tensors())
