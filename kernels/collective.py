"""Adding up over processes, by the name of their group: a name passes through custom operators and compilation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import all_reduce, wait_tensor


def added_up(values: Tensor, group: Any) -> Tensor:
    """The sum of ``values`` over all processes of the group of that name. Not differentiable."""
    return wait_tensor(all_reduce(values, "sum", group))


class AddedUp(torch.autograd.Function):
    """`added_up` with its gradient: every process's loss depends on every process's values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: str) -> Tensor:
        ctx.group = group
        return added_up(values, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return added_up(gradients[0].contiguous(), ctx.group), None
