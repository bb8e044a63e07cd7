"""Running statistics: torch's own for one group, the average over groups for several, and saved and loaded whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastselfie.training.statistics import RunningStatistics
from fastselfie.training.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
NORMS = (0, 3)  # places in the network of `small_network`


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5))


def batches(count: int) -> list[Tensor]:
    """Of different mean and deviation, so that groups and steps differ."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 6, 6, generator=generator) * (1 + index) + index for index in range(count)]


def buffers(network: nn.Sequential) -> list[Tensor]:
    """Both means, then both variances."""
    found = []
    for kind in ("running_mean", "running_var"):
        for index in NORMS:
            buffer = getattr(network[index], kind)
            assert isinstance(buffer, Tensor)
            found.append(buffer.clone())
    return found


def train(network: nn.Sequential, statistics: RunningStatistics, groups: int, merge: bool = False) -> None:
    for index, batch in enumerate(batches(6)):
        network(batch)
        statistics.collect(index % groups)
        if merge:
            statistics.merge_into_network(ALONE)


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=tolerance, atol=tolerance)


def test_one_group_is_torchs_own() -> None:
    network = small_network()
    theirs = copy.deepcopy(network)  # momentum 0.1, torch's default
    train(network, statistics := RunningStatistics(network, groups=1), groups=1)
    statistics.merge_into_network(ALONE)
    for batch in batches(6):
        theirs(batch)
    assert_same(buffers(network), buffers(theirs), 1e-6)


def test_two_groups_are_the_running_average_of_their_mean() -> None:
    """By hand in fp64, for the first norm: unbiased variance over images and positions, one update a step."""
    network = small_network()
    train(network, statistics := RunningStatistics(network, groups=2), groups=2)
    statistics.merge_into_network(ALONE)
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    all_batches = [batch.double().transpose(0, 1).flatten(1) for batch in batches(6)]
    for first, second in zip(all_batches[::2], all_batches[1::2], strict=True):
        mean = 0.9 * mean + 0.1 * (first.mean(dim=1) + second.mean(dim=1)) / 2
        variance = 0.9 * variance + 0.1 * (first.var(dim=1) + second.var(dim=1)) / 2
    means, _, variances, _ = buffers(network)
    assert_same([means, variances], [mean, variance], 1e-5)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_evaluating_on_the_way_does_not_disturb_training(groups: int) -> None:
    results = []
    for merge in (False, True):
        network = small_network()
        train(network, statistics := RunningStatistics(network, groups), groups, merge)
        statistics.merge_into_network(ALONE)
        results.append([statistics.values_A2C, *buffers(network)])
    undisturbed, disturbed = results
    assert_same(disturbed, undisturbed, tolerance=0)


def test_merging_twice_changes_nothing() -> None:
    network = small_network()
    train(network, statistics := RunningStatistics(network, groups=3), groups=3)
    statistics.merge_into_network(ALONE)
    once = buffers(network)
    statistics.merge_into_network(ALONE)
    assert_same(buffers(network), once, tolerance=0)


def test_they_start_from_the_buffers_that_are_there() -> None:
    """A finetuned network's are those of pretraining."""
    network = small_network()
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.arange(float(len(buffer))))
    before = buffers(network)
    statistics = RunningStatistics(network, groups=2)
    assert statistics.values_A2C.tolist() == [torch.cat(before).tolist()] * 2
    statistics.merge_into_network(ALONE)
    assert_same(buffers(network), before, tolerance=0)


def test_state_goes_round() -> None:
    """Loaded into a fresh network, training goes on as if unbroken, group by group."""
    network = small_network()
    train(network, statistics := RunningStatistics(network, groups=2), groups=2)
    state = statistics.state(ALONE)
    assert state.shape == (2, 2 * (3 + 5))
    assert not torch.equal(state[0], state[1])
    other = small_network()
    resumed = RunningStatistics(other, groups=2)
    resumed.load(state, ALONE)
    for net, values in ((network, statistics), (other, resumed)):
        train(net, values, groups=2)
    assert_same([resumed.values_A2C], [statistics.values_A2C], tolerance=0)


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_another_number_of_groups_starts_from_the_mean(groups: int) -> None:
    network = small_network()
    train(network, statistics := RunningStatistics(network, groups=2), groups=2)
    state = statistics.state(ALONE)
    statistics.merge_into_network(ALONE)
    expected = buffers(network)
    other = small_network()
    resumed = RunningStatistics(other, groups)
    resumed.load(state, ALONE)
    assert resumed.values_A2C.shape == (groups, 16)
    resumed.merge_into_network(ALONE)
    assert_same(buffers(other), expected, 1e-6)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_process_takes_its_own_groups(rank: int) -> None:
    resumed = RunningStatistics(small_network(), groups=2)
    state = torch.arange(6 * 16.0).view(6, 16)
    resumed.load(state, World(rank=rank, size=3, device=torch.device("cpu")))
    assert torch.equal(resumed.values_A2C, state[2 * rank : 2 * rank + 2])
