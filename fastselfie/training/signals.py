"""Ctrl-C and SIGTERM end a run at a step's end, after a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from fastselfie.training.world import World


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

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal. A second one ends the process at once, as it would have without us."""
        self._received = number
        signal.signal(number, signal.SIG_DFL)

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
