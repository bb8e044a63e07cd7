"""The network is one graph for torch.compile: no breaks, and the same numbers. Its generated code is not tested."""

from __future__ import annotations

import pytest
import torch

from fastselfie.kernels import using
from fastselfie.kernels.dispatch import Kernels
from fastselfie.models.selfie import Selfie
from fastselfie.training.statistics import RunningStatistics
from tests.small_networks import pretrain_config, question


@pytest.mark.parametrize("kernels", ["off", "on"])
def test_one_graph_gives_the_same_loss_and_statistics(kernels: Kernels) -> None:
    """With kernels on these are nodes of the graph; interpreted where there is no GPU."""
    config = pretrain_config(dropout=0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    patches, places_BN = question(config, images=4)
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = Selfie(config).to(device)
        statistics = RunningStatistics(network, groups=1)
        forward = torch.compile(network, fullgraph=True, backend="aot_eager") if compiled else network
        with using(kernels):
            loss, right = forward(patches.float().to(device), places_BN.to(device))
            loss.backward()
        statistics.collect(0)
        gradient = network.trunk.stem.conv.weight.grad
        assert gradient is not None
        results.append((loss.detach(), right, gradient, statistics.values_A2C))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-6)
