"""SGD with Nesterov momentum, warm-up and cosine (paper, section 3.2)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

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


def make_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """One fused kernel a group: decayed weights, and everything else without decay."""
    decayed = decayed_parameters(network)
    taken = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
