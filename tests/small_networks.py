"""Small networks in both patch settings, questions to put to them, and how closely gradients must agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.config import FinetuneConfig, ModelConfig, PretrainConfig

# Images of 32 pixels in 4 x 4 patches of 8; images of 224 pixels in 7 x 7 patches of 32.
SETTINGS: list[dict[str, Any]] = [{"image_size": 32, "patch": 8}, {"image_size": 224, "patch": 32}]
SMALL: dict[str, Any] = {"width": 1 / 16, "heads": 4}  # D = 64


def model_config(**settings: Any) -> ModelConfig:
    return ModelConfig(**(SMALL | settings))


def pretrain_config(**settings: Any) -> PretrainConfig:
    return PretrainConfig(**({"recipe": "test"} | SMALL | settings))


def finetune_config(**settings: Any) -> FinetuneConfig:
    return FinetuneConfig(**({"recipe": "test"} | SMALL | settings))


def question(config: PretrainConfig, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random patches, fp64 (B * N, 3, P, P), and a random order of the places for each image, (B, N)."""
    generator = torch.Generator().manual_seed(seed)
    N, P = config.patches, config.patch
    places_BN = torch.stack([torch.randperm(N, generator=generator) for _ in range(images)])
    return torch.randn(images * N, 3, P, P, generator=generator, dtype=torch.float64), places_BN


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Move every norm's weight, bias and running statistics off their neutral start, so that none goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """The largest difference is at most ``tolerance`` times the largest expected value."""
    assert actual.shape == expected.shape, what
    largest = expected.abs().max().item()
    assert largest > 0, f"{what}: nothing to compare"
    error = (actual.double() - expected.double()).abs().max().item() / largest
    assert error <= tolerance, f"{what}: {error:.1e} of the largest value, {tolerance:.0e} allowed"
