"""Synchronised statistics in the trunk: two gloo processes with half of the maps each are one with all maps.

Truth is the plain blocks over all maps, in fp64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastselfie.kernels import using
from fastselfie.models import fused
from fastselfie.models.resnet import Bottleneck
from fastselfie.models.statistics import synchronised
from tests.kernel_checks import generator, needs_interpreter
from tests.small_networks import assert_near, randomise
from tests.trunk_cases import maps
from tests.two_processes import two_processes

pytest.importorskip("triton")
pytestmark = needs_interpreter  # the processes compute on the CPU

WAYS = ("on", "off", "plain", "compiled")  # the fused trunk with kernels around it or without, and the plain one
SIZES = ((32, 32, 2), (128, 16, 1))  # strided with a shortcut, then dense on 2x2 maps
PROGRAM = """
import sys
import torch
import torch.distributed as dist
from tests.quick_interpreter import quicken
from tests.test_trunk_processes import WAYS, half_of_the_maps

quicken()
dist.init_process_group("gloo")
for way in WAYS:
    torch.save(half_of_the_maps(dist.get_rank(), way), f"{sys.argv[1]}/{way}-{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Blocks, maps whose halves differ in mean and spread, and the output's gradient."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Bottleneck(*sizes) for sizes in SIZES))
    randomise(blocks)
    x = maps(16, SIZES[0][0], 4, 4)
    x[8:] *= 2
    x[:8] += 1
    return blocks, x, torch.randn(16, 64, 2, 2, generator=generator(7))


def found(network: Any, y: Tensor, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    dx, *gradients = torch.autograd.grad(y, [x, *parameters], dy)
    buffers = {name: buffer for name, buffer in network.named_buffers() if "running" in name}
    return {"y": y.detach(), "x": dx, **dict(zip(names, gradients, strict=True)), **buffers}


def half_of_the_maps(rank: int, way: Any) -> dict[str, Tensor]:
    """What one of two processes computes. No graph outlives it: one that holds the group at the end may abort."""
    blocks, x, dy = problem()
    blocks = synchronised(blocks)
    leaf = x.chunk(2)[rank].clone().requires_grad_()
    dy_of_half = dy.chunk(2)[rank]
    if way in ("plain", "compiled"):  # the latter as one graph, with nothing that waits for a value
        forward = torch.compile(blocks, fullgraph=True, backend="aot_eager") if way == "compiled" else blocks
        return found(blocks, forward(leaf), leaf, dy_of_half)
    with using(way, trunk="fused"):
        y, sums = fused.forward(blocks, leaf)  # type: ignore[arg-type]
    if sums is not None:  # of this process alone
        assert_near(sums[0], y.double().sum(dim=(0, 2, 3)), 1e-5)
    return found(blocks, y, leaf, dy_of_half)


def one_process() -> dict[str, Tensor]:
    blocks, x, dy = problem()
    leaf = x.double().requires_grad_()
    return found(blocks.double(), blocks(leaf), leaf, dy.double())


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Of the fused trunk the first block's sums are of the operations around it."""
    two_processes(PROGRAM, tmp_path)
    for way in WAYS:
        files = (tmp_path / f"{way}-{rank}.pt" for rank in range(2))
        assert_halves(*(torch.load(file, weights_only=True) for file in files))


def assert_halves(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    truth = one_process()
    assert first.keys() == second.keys() == truth.keys()
    for name, expected in truth.items():
        # Of outputs and maps each process has half; the parameters' gradients are for DDP to add up.
        # Running statistics are the same in both.
        if "running" in name:
            assert torch.equal(first[name], second[name])
            assert_near(first[name], expected, 3e-6, name)
        else:
            one, other = first[name], second[name]
            assert_near(torch.cat([one, other]) if name in ("y", "x") else one + other, expected, 1e-5, name)
