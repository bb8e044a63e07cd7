"""Micro benches of the operations around the trunk, at the recipes' shapes, on the CUDA device or else on the CPU.

pytest bench/operations.py --benchmark-enable --benchmark-json=FILE
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastselfie.kernels import location_head, patch_batch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {"cifar10": (512, 32, 8, 4), "imagenet224": (64, 224, 32, 12)}  # images, side, patch, masked patches


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("recipe", SHAPES)
def test_patch_batch(benchmark: BenchmarkFixture, recipe: str) -> None:
    B, side, patch, _ = SHAPES[recipe]
    pixels = torch.randint(0, 256, (B, side, side, 3), dtype=torch.uint8, device=DEVICE)
    mean = std = torch.full((3,), 0.5, device=DEVICE)
    places_BN = torch.rand(B, (side // patch) ** 2, device=DEVICE).argsort(dim=1)

    def run() -> torch.Tensor:
        out = patch_batch(pixels, patch=patch, mean=mean, std=std, dtype=torch.bfloat16, places_BN=places_BN)
        _wait()
        return out

    out = benchmark(run)
    moved = pixels.numel() + out.numel() * out.element_size()
    benchmark.extra_info |= {"device": str(DEVICE), "bytes": moved, "what": "uint8 read once, bf16 written once"}
    assert out.shape == (B * (side // patch) ** 2, 3, patch, patch)


@pytest.mark.parametrize("recipe", SHAPES)
def test_location_head(benchmark: BenchmarkFixture, recipe: str) -> None:
    B, side, patch, m = SHAPES[recipe]
    N, D = (side // patch) ** 2, 1024
    u_BD, h_BmD, e_ND = (torch.randn(*s, device=DEVICE, requires_grad=True) for s in ((B, D), (B, m, D), (N, D)))
    places_Bm = torch.rand(B, N, device=DEVICE).argsort(dim=1)[:, :m]

    def run() -> torch.Tensor:
        loss, _ = location_head(u_BD, e_ND, places_Bm, h_BmD, D**-0.5)
        torch.autograd.grad(loss, (u_BD, h_BmD, e_ND))
        _wait()
        return loss

    loss = benchmark(run)
    benchmark.extra_info |= {"device": str(DEVICE), "what": "forward and backward, fp32"}
    assert torch.isfinite(loss)
