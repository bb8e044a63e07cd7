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
    """Means of loss and metrics over the micro-batches since the last log line.

    Sums are fp64, so that adding up in another order (two processes, or one with two micro-batches) gives the same.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, loss: Loss) -> None:
        """Account for one micro-batch. No host synchronisation."""
        for name, value in {"loss": loss.value.detach(), **loss.metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.double()
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means over all processes; the window starts again. The one place where the host waits for the device."""
        state = self.state()
        self._sums, self._count = {}, 0
        return {name: value / state["count"] for name, value in state["sums"].items()}

    def state(self) -> dict[str, Any]:
        """Sums over all processes and the number of micro-batches in them, for a checkpoint."""
        if not self._sums:
            return {"count": 0, "sums": {}}
        values = [*self._sums.values(), torch.tensor(self._count, device=self._world.device, dtype=torch.float64)]
        *totals, count = self._world.sum_(torch.stack(values)).tolist()
        return {"count": int(count), "sums": dict(zip(self._sums, totals, strict=True))}

    def load(self, state: dict[str, Any]) -> None:
        """Take over `state`: the main process has all of it, the others start from zeros of the same names."""
        share = 1 if self._world.is_main else 0
        self._count = share * state["count"]
        device = self._world.device
        sums = {name: share * value for name, value in state["sums"].items()}
        self._sums = {n: torch.tensor(v, device=device, dtype=torch.float64) for n, v in sums.items()}


class Throughput:
    """Images a second and the share of time spent waiting for data, evaluations and checkpoints left out."""

    def __init__(self, images_per_step: int, device: torch.device) -> None:
        self._images_per_step, self._device = images_per_step, device
        self.restart()

    def restart(self) -> None:
        """Start the measurement again."""
        self._started, self._waited_s, self._paused_s, self._steps = time.perf_counter(), 0.0, 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around asking the pipeline for a batch. On CUDA this is the host's time; the device may still be busy."""
        started = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around an evaluation or a checkpoint. Waits for the steps before it, which are training's time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - started

    def end_step(self) -> None:
        """Count a finished step."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """``images_per_second``, ``data_wait`` (a share) and ``peak_gib``; the measurement starts again.

        Nothing before the first step.
        """
        if not self._steps:
            return {}
        busy_s = time.perf_counter() - self._started - self._paused_s
        values = {
            "images_per_second": self._steps * self._images_per_step / busy_s,
            "data_wait": self._waited_s / busy_s,
            "peak_gib": _peak_bytes(self._device) / 2**30,
        }
        self.restart()
        return values


def _peak_bytes(device: torch.device) -> int:
    """Most memory held so far: tensors on a CUDA device, or the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
