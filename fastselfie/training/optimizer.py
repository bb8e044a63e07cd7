"""SGD with Nesterov momentum, warm-up and cosine (paper, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastselfie.config import RunConfig

WARMUP_STEPS = 100


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The rate of step ``step`` in [0, steps): linear up over min(100, steps // 5) steps, then a cosine to 0."""
    warmup = min(WARMUP_STEPS, steps // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def decayed_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Weights of convolutions and linear layers: the parameters that weight decay pulls on."""
    layers = (m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return [cast(nn.Parameter, layer.weight) for layer in layers]


def make_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """One fused kernel a group: decayed weights, and everything else without decay."""
    decayed = decayed_parameters(network)
    taken = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    settings: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "nesterov": config.momentum > 0}
    if config.sgd == "apex":
        from apex.optimizers import FusedSGD

        return cast(torch.optim.Optimizer, FusedSGD(groups, **settings))
    return torch.optim.SGD(groups, fused=True, **settings)


def momentum_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momentum buffers by the parameters' names; none before the first step or without momentum."""
    state = {name: optimizer.state[parameter] for name, parameter in network.named_parameters()}
    return {name: values["momentum_buffer"] for name, values in state.items() if "momentum_buffer" in values}


def load_momentum(network: nn.Module, optimizer: torch.optim.Optimizer, buffers: Mapping[str, Tensor]) -> None:
    """Take over what `momentum_of` gave, in each parameter's own strides and device."""
    for name, parameter in network.named_parameters():
        if name in buffers:
            optimizer.state[parameter] = {"momentum_buffer": torch.empty_like(parameter).copy_(buffers[name])}
