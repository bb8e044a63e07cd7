"""What a log line is made of: sums over the steps since the last one, kept on the device until it is due."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastselfie.pretext.task import Loss
from fastselfie.training.world import World


class Window:
    """Means of loss and metrics over the steps since the last log line.

    Sums are fp64, so that adding up in another order (two processes, or one with two micro-batches) gives the same.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, loss: Loss, weight: float) -> None:
        """Account for one micro-batch that is ``weight`` of this process's step. No host synchronisation."""
        for name, value in {"loss": loss.value.detach(), **loss.metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.double() * weight

    def end_step(self) -> None:
        """Count a finished step."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """The means over all processes; the window starts again. The one place where the host waits for the device."""
        state = self.state()
        self._sums, self._steps = {}, 0
        return {name: value / state["steps"] for name, value in state["sums"].items()}

    def state(self) -> dict[str, Any]:
        """Sums over all processes and the number of steps, for a checkpoint."""
        if not self._sums:
            return {"steps": self._steps, "sums": {}}
        totals = self._world.sum_(torch.stack(list(self._sums.values()))) / self._world.size
        return {"steps": self._steps, "sums": dict(zip(self._sums, totals.tolist(), strict=True))}

    def load(self, state: dict[str, Any]) -> None:
        """Take over `state`: a mean over processes, so each starts from it."""
        self._steps = state["steps"]
        device = self._world.device
        self._sums = {n: torch.tensor(v, device=device, dtype=torch.float64) for n, v in state["sums"].items()}


class Throughput:
    """Images a second and the share of time spent waiting for data, evaluations and checkpoints left out."""

    def __init__(self, images_per_step: int, device: torch.device) -> None:
        self._images_per_step, self._device = images_per_step, device
        self._restart()

    def _restart(self) -> None:
        self._started, self._waited_s, self._paused_s, self._steps = time.perf_counter(), 0.0, 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around asking the pipeline for a batch."""
        started = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around an evaluation or a checkpoint."""
        started = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - started

    def end_step(self) -> None:
        """Count a finished step."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """``images_per_second``, ``data_wait`` (a share) and ``peak_gib``; the measurement starts again."""
        busy_s = time.perf_counter() - self._started - self._paused_s
        values = {
            "images_per_second": self._steps * self._images_per_step / busy_s,
            "data_wait": self._waited_s / busy_s,
            "peak_gib": _peak_bytes(self._device) / 2**30,
        }
        self._restart()
        return values


def _peak_bytes(device: torch.device) -> int:
    """Most memory held so far: tensors on a CUDA device, or the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
