"""Ctrl-C and SIGTERM end a run at a step's end, after a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from fastselfie.training.world import World

_SAME_S = 2.0
"""A batch system tells all processes of a job at once, and a protocol or torchrun passes on to its runs what it hears:
they hear one request twice."""


class Stopped(Exception):  # noqa: N818 - not an error: the user asked
    """The run was asked to stop and has saved itself. ``status`` is the shell's 128 + signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StopSignal:
    """Which signal has arrived, 0 for none."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._received = 0
        self._since = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal. A later one ends the process at once, as it would have without us."""
        if not self._received:
            self._received, self._since = number, time.monotonic()
        elif time.monotonic() > self._since + _SAME_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self) -> int:
        """The signal that any process has received, the same answer in all: they must leave at the same step.

        On a CPU tensor, so that a CUDA device is not waited for.
        """
        if not self._world.distributed:
            return self._received
        flag = torch.tensor(self._received)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(flag)


@contextmanager
def stop_signal(world: World) -> Iterator[StopSignal]:
    """Catch SIGINT and SIGTERM while the block runs."""
    stop = StopSignal(world)
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
