"""What a log line is made of: windows that start again, and images a second by a clock that the tests turn."""

from __future__ import annotations

import pytest
import torch

from fastselfie.pretext.task import Loss
from fastselfie.training import metrics
from fastselfie.training.metrics import Throughput, Window
from fastselfie.training.world import World

CPU = torch.device("cpu")


class Clock:
    """Stands where it is put. Given to a module in the place of `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_a_window_starts_again_and_keeps_no_graph() -> None:
    window = Window(World(device=CPU))
    for values in ((1.0, 2.0, 6.0), (5.0, 7.0)):
        for value in values:
            window.add(Loss(value=torch.tensor(value, requires_grad=True), metrics={"accuracy": torch.tensor(1.0)}))
        assert not window._sums["loss"].requires_grad
        assert window.take() == {"loss": sum(values) / len(values), "accuracy": 1.0}
        assert window.state() == {"count": 0, "sums": {}}


def test_images_a_second(clock: Clock) -> None:
    """Two steps of 8 images in 4 seconds, of which one is waited; evaluations and what came before do not count."""
    throughput = Throughput(8, CPU)
    clock.now += 100
    throughput.restart()
    for _ in range(2):
        with throughput.waiting():
            clock.now += 0.5
        clock.now += 1.5
        with throughput.paused():
            clock.now += 3
        throughput.end_step()
    first = throughput.take()
    assert first.pop("peak_gib") > 0.01
    assert first == {"images_per_second": 4.0, "data_wait": 0.25}
    assert throughput.take() == {}, "no step yet"
    clock.now += 16
    throughput.end_step()
    again = throughput.take()
    assert (again["images_per_second"], again["data_wait"]) == (0.5, 0.0)
