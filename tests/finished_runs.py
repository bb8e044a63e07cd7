"""Finished runs made by hand, whose weights are known, and names and shapes of a ResNet-50v2 from its definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fastselfie.models.encoders import encoder
from fastselfie.models.selfie import Selfie
from tests.run_folders import write_run
from tests.small_networks import finetune_config, pretrain_config, randomise

SMALL: dict[str, Any] = {"width": 1 / 16, "heads": 4}
LARGE_STEM: dict[str, Any] = {"image_size": 224, "patch": 32}
CLASSES = 10


def finished(path: Path, command: str, drawn: int = 0, **settings: Any) -> nn.Module:
    """Write a finished run of 7 steps to ``path``; its network in evaluation mode, no norm of it neutral."""
    settings = SMALL | {"steps": 7} | settings
    torch.manual_seed(drawn)
    network: nn.Module
    if command == "pretrain":
        network = Selfie(pretrain_config(**settings))
    else:
        settings |= {"scratch": True}
        network = encoder(finetune_config(**settings), CLASSES)
    randomise(network, drawn)
    write_run(path, command, [{"step": 7}], {"step": 7}, **settings)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(weights, path / "encoder.safetensors")
    return network.eval()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and its metadata, with what is JSON in it read."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    return safetensors.torch.load_file(path), metadata | {
        name: json.loads(metadata[name]) for name in ("mean", "std", "fresh", "width", "patch", "step")
    }


def resnet50(width: float = 1, kernel: int = 7, classes: int | None = None) -> dict[str, tuple[int, ...]]:
    """Name in timm and shape of every tensor: stem, 3 + 4 + 6 + 3 pre-activation bottlenecks, norm, 1x1 head."""
    base = round(64 * width)
    shapes: dict[str, tuple[int, ...]] = {"stem.conv.weight": (base, 3, kernel, kernel)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    inputs = base
    for stage, depth in enumerate((3, 4, 6, 3)):
        middle = base * 2**stage
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            if block == 0:
                shapes[f"{name}.downsample.conv.weight"] = (4 * middle, inputs, 1, 1)
            norm(f"{name}.norm1", inputs)
            shapes[f"{name}.conv1.weight"] = (middle, inputs, 1, 1)
            norm(f"{name}.norm2", middle)
            shapes[f"{name}.conv2.weight"] = (middle, middle, 3, 3)
            norm(f"{name}.norm3", middle)
            shapes[f"{name}.conv3.weight"] = (4 * middle, middle, 1, 1)
            inputs = 4 * middle
    norm("norm", inputs)
    if classes is not None:
        shapes |= {"head.fc.weight": (classes, inputs, 1, 1), "head.fc.bias": (classes,)}
    return shapes
