"""The network is one graph for torch.compile: no breaks, and the same numbers. Its generated code is not tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastselfie.kernels import using
from fastselfie.kernels.dispatch import Kernels
from fastselfie.models.selfie import Selfie
from fastselfie.training.statistics import RunningStatistics
from tests.kernel_checks import assert_as_exact
from tests.small_networks import pretrain_config, question
from tests.test_host_sync import pretraining, trainer


def test_it_is_compiled_before_the_first_step(tmp_path: Path) -> None:
    """And an eager network alone goes through no pass more."""
    run = trainer(pretraining, torch.device("cpu"), tmp_path)
    run.settle()
    assert all(parameter.grad is None for parameter in run.network.parameters())
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    run.forward = torch.compile(run.network, backend=backend)
    run.settle()
    found = len(compiled)
    assert found
    assert any(parameter.grad is not None for parameter in run.network.parameters()), "the way back too"
    run.step(0)
    assert len(compiled) == found


@pytest.mark.parametrize("kernels", ["off", "on"])
def test_one_graph_gives_the_same_loss_and_statistics(kernels: Kernels) -> None:
    """With kernels on these are nodes of the graph; interpreted where there is no GPU. Truth is the eager network in
    fp64."""
    config = pretrain_config(dropout=0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    patches, places_BN = question(config, images=4)

    def results(kernels: Kernels, dtype: torch.dtype, compiled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        network = Selfie(config).to(device, dtype)
        statistics = RunningStatistics(network, groups=1)
        forward = torch.compile(network, fullgraph=True, backend="aot_eager") if compiled else network
        with using(kernels):
            loss, right = forward(patches.to(device, dtype), places_BN.to(device))
            loss.backward()
        statistics.collect(0)
        gradient = network.trunk.stem.conv.weight.grad
        assert gradient is not None
        return [loss.detach(), gradient, statistics.values_A2C, right]

    *truth, right = results("off", torch.float64, compiled=False)
    *eager, _ = results(kernels, torch.float32, compiled=False)
    *graph, found = results(kernels, torch.float32, compiled=True)
    assert found == right
    for name, ours, plain, exact in zip(("loss", "gradient", "statistics"), graph, eager, truth, strict=True):
        assert_as_exact(ours, plain, exact.double(), name)
