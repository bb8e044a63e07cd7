"""The one seam between the training loop and a task: a batch goes in, a `Loss` comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastselfie.config import RunConfig
from fastselfie.pipelines.view import Batch, View


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a task makes of a batch.

    Attributes:
        value: fp32 scalar with a graph, the mean over the batch.
        metrics: named detached scalars, means over the batch; the loop averages and logs them.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]


class Task(Protocol):
    """A network and what is asked of it.

    Attributes:
        network: the bare module: its parameters are trained, its weights saved.
        view: the view of images that training wants.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def view(self) -> View: ...

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Loss:
        """The loss of ``forward``, which is ``network`` itself or a compiled or distributed wrapper of it."""
        ...


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """How uint8 pixels become the network's input: fp32 (3,) mean and deviation on the device, and the dtype."""

    mean: Tensor
    std: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, config: RunConfig, device: torch.device) -> PixelFormat:
        """The recipe's statistics and the resolved precision, put on the device once: every step it would stall."""
        return cls(
            mean=torch.tensor(config.mean, device=device), std=torch.tensor(config.std, device=device),
            dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        )  # fmt: skip
