"""Synchronised statistics: two gloo processes with half of the maps each are one process with all maps.

Truth is PyTorch's own batch norm over all maps, in fp64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastselfie.kernels import patch_tokens
from fastselfie.models.resnet import batch_norm
from fastselfie.models.statistics import statistics, synchronised
from tests.kernel_checks import generator, needs_interpreter, orders
from tests.small_networks import assert_near
from tests.two_processes import two_processes

pytest.importorskip("triton")
pytestmark = needs_interpreter  # the processes compute on the CPU

B, N, n, D, SIDE, EPS = 4, 4, 3, 48, 2, 1e-5
COUNT = B * N * SIDE * SIDE  # of both processes
PROGRAM = """
import sys
import torch
import torch.distributed as dist
from fastselfie.kernels import using
from tests.quick_interpreter import quicken
from tests.test_kernel_processes import half_of_the_maps

quicken()
dist.init_process_group("gloo")
for kernels in ("on", "off"):
    with using(kernels):
        torch.save(half_of_the_maps(dist.get_rank()), f"{sys.argv[1]}/{kernels}-{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def problem() -> list[Tensor]:
    """Maps whose halves differ in mean and spread, weight, bias, u0, positions, places, and upstream gradients."""
    random = generator()
    maps = torch.randn(B * N, D, SIDE, SIDE, generator=random)
    maps[B * N // 2 :] *= 2
    maps[: B * N // 2] += 1
    parameters = [torch.randn(D, generator=random) for _ in range(3)]
    positions = torch.randn(N, D, generator=random)
    upstream = [torch.randn(B, count, D, generator=random) for count in (1 + n, N - n)]
    return [maps, *parameters, positions, orders(B, N), *upstream]


def half_of_the_maps(rank: int) -> list[Tensor]:
    """What one of two processes computes. No graph outlives it: one that holds the group at the end may abort."""
    tensors = problem()
    maps, places, dtokens, dfeatures = (tensors[i].chunk(2)[rank] for i in (0, 5, 6, 7))
    leaves = [leaf.requires_grad_() for leaf in (maps, *tensors[1:5])]
    norm: Any = synchronised(batch_norm(D))
    its = statistics(norm, maps)
    assert its.count == COUNT
    given = (its.values_2D, leaves[1], leaves[2], leaves[3], leaves[4], places)
    outputs = patch_tokens(maps, *given, n, eps=EPS, count=its.count, group=its.group)
    gradients = torch.autograd.grad(outputs, leaves, [dtokens, dfeatures])
    return [*(output.detach() for output in outputs), *gradients, norm.running_mean, norm.running_var]


def one_process() -> list[Tensor]:
    """Tokens, features and gradients of all maps, in fp64, image by image."""
    maps, weight, bias, u0, positions, places, *upstream = (
        tensor.double() if tensor.is_floating_point() else tensor for tensor in problem()
    )
    leaves = [tensor.requires_grad_() for tensor in (maps, weight, bias, u0, positions)]
    norm = nn.BatchNorm2d(D, eps=EPS, dtype=torch.float64)
    pooled = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, maps).relu().mean(dim=(2, 3))
    images = pooled.split(N)
    tokens = [torch.cat([u0[None], images[b][:n] + positions[places[b, :n]]]) for b in range(B)]
    outputs = [torch.stack(tokens), torch.stack([image[n:] for image in images])]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    return [*(output.detach() for output in outputs), *gradients, norm.running_mean, norm.running_var]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes computed, with kernels and without."""
    folder = tmp_path_factory.mktemp("computed")
    two_processes(PROGRAM, folder)
    return folder


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_two_processes_are_one(kernels: str, computed: Path) -> None:
    first, second = (torch.load(computed / f"{kernels}-{rank}.pt", weights_only=True) for rank in range(2))
    names = ["tokens", "features", "maps", "weight", "bias", "u0", "positions", "running mean", "running variance"]
    for what, one, other, expected in zip(names, first, second, one_process(), strict=True):
        # Of outputs and maps each process has half; the parameters' gradients are for DDP to add up.
        # Running statistics are the same in both.
        whole = torch.cat([one, other]) if what in names[:3] else (one + other) / (2 if "running" in what else 1)
        assert_near(whole, expected, 3e-6, what)
