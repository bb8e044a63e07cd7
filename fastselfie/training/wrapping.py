"""What training puts around a network: lower precision, compilation, and other processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fastselfie.config import RunConfig
from fastselfie.training.world import World


def autocast(config: RunConfig) -> Any:
    """bf16 autocast over fp32 weights, or nothing, as the resolved precision says."""
    return torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16")


def compiled(network: Callable[..., Any], device_type: str, backend: str = "inductor", mode: str = "default") -> Any:
    """The network as ``--compile on`` has it.

    Args:
        mode: of Inductor, as `torch.compile` names them; other backends have none.
    """
    if backend != "inductor":
        return torch.compile(network, backend=backend)
    return torch.compile(network, options=torch._inductor.list_mode_options(mode) | inductor_settings(device_type))


def inductor_settings(device_type: str) -> dict[str, Any]:
    """Inductor's, on top of those of a mode.

    What has more than four inputs and several uses it would first write to memory; ReLU's gradient has five where a
    shortcut branches off. On a CPU its random numbers take longer than PyTorch's own, with which dropout leaves out
    what it does in an eager network.
    """
    return {"realize_reads_threshold": 6, "fallback_random": device_type == "cpu"}


def wrap(network: torch.nn.Module, config: RunConfig, world: World) -> Callable[..., Any]:
    """The network as training calls it: compiled inside, distributed outside, each where asked for.

    Buffers are not broadcast: the running statistics are `RunningStatistics`' affair.
    """
    forward = compiled(network, config.device) if config.compile == "on" else network
    if not world.distributed:
        return forward
    ids = [world.device] if world.device.type == "cuda" else None
    # Torch 2.13 renamed the option; what it is about is the same.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(forward, device_ids=ids, gradient_as_bucket_view=True, **options)
