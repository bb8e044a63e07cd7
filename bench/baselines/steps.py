"""The peers' training steps: forward, backward and an SGD update of `PlainSelfie`, on patches that are already there.

Drawing masks, cutting patches and keeping a learning-rate schedule are left out, which favours these sides. "fp32" is
fp32 as PyTorch runs it when nobody asks: on CUDA its convolutions use TF32, unless FastSelfie's own precision is fp32.
cuDNN tries its algorithms for them as it does for FastSelfie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.baselines.per_patch import PerPatchSelfie
from bench.baselines.plain_selfie import PlainSelfie
from fastselfie.config import PretrainConfig

Step = Callable[[], object]


def eager_fp32(config: PretrainConfig, device: torch.device) -> Step:
    """The paper's network, eager, fp32, NCHW."""
    network = plain_network(config, device)
    return _training(network, network, config, *question(config, device), autocast=False)


def per_patch(config: PretrainConfig, device: torch.device) -> Step:
    """The same with one trunk call a patch position; see `bench.baselines.per_patch`."""
    network = PerPatchSelfie(config.width, config.grid, config.patch, config.visible, config.heads).to(device)
    return _training(network, network, config, *question(config, device), autocast=False)


def eager_bf16(config: PretrainConfig, device: torch.device) -> Step:
    """Eager under bf16 autocast with channels-last maps: what PyTorch's own guides advise."""
    network, patches, places = _channels_last(config, device)
    return _training(network, network, config, patches, places, autocast=True)


def compiled_bf16(config: PretrainConfig, device: torch.device, backend: str) -> Step:
    """That under torch.compile."""
    network, patches, places = _channels_last(config, device)
    return _training(network, torch.compile(network, backend=backend), config, patches, places, autocast=True)


def plain_network(config: PretrainConfig, device: torch.device) -> PlainSelfie:
    """With the recipe's shape and fresh weights."""
    return PlainSelfie(config.width, config.grid, config.patch, config.visible, config.heads).to(device)


def question(config: PretrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random patches (B * N, 3, P, P), fp32, and where they come from, (B, N)."""
    B, N, P = config.batch_size, config.patches, config.patch
    patches = torch.randn(B * N, 3, P, P, device=device)
    return patches, torch.rand(B, N, device=device).argsort(dim=1)


def _channels_last(config: PretrainConfig, device: torch.device) -> tuple[PlainSelfie, Tensor, Tensor]:
    patches, places = question(config, device)
    # mypy knows no signature of `to` with a memory format alone.
    network = plain_network(config, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, patches.contiguous(memory_format=torch.channels_last), places


def _training(
    network: PlainSelfie, forward: Any, config: PretrainConfig, patches: Tensor, places: Tensor, *, autocast: bool
) -> Step:
    """One call is one step; ``forward`` is ``network`` or a compiled wrapper of it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(patches.device.type, torch.bfloat16, enabled=autocast):
            loss, _ = forward(patches, places)
        loss.backward()
        optimizer.step()

    return step
