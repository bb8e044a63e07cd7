"""Ctrl-C and SIGTERM end a run at a step's end, after a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from fastselfie.errors import lost_another
from fastselfie.training.world import World

_SAME_S = 2.0
"""A batch system tells all processes of a job at once, and a protocol or torchrun passes on to its runs what it hears:
they hear one request twice."""


class Stopped(Exception):  # noqa: N818 - not an error: the user asked
    """The run was asked to stop and has saved itself. ``status`` is the shell's 128 + signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(kw_only=True)
class Received:
    """The first signal that has arrived, 0 for none."""

    number: int = 0


@contextmanager
def received(again: Callable[[int], None]) -> Iterator[Received]:
    """Catch SIGINT and SIGTERM while the block runs. ``again`` is told of one that comes later than the first."""
    first, since = Received(), 0.0

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not first.number:
            first.number, since = number, time.monotonic()
        elif time.monotonic() > since + _SAME_S:
            again(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield first
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignal:
    """Which signal any of the processes has received."""

    def __init__(self, world: World, own: Received) -> None:
        self._world, self._own = world, own

    def agreed(self) -> int:
        """The signal, 0 for none, the same answer in all processes: they must leave at the same step.

        On a CPU tensor, so that a CUDA device is not waited for.
        """
        if not self._world.distributed:
            return self._own.number
        flag = torch.tensor(self._own.number)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(flag)


@contextmanager
def stop_signal(world: World) -> Iterator[StopSignal]:
    """Catch SIGINT and SIGTERM while the block runs; a later one ends the process at once, as it would without us. So
    does the first where another process has gone, as nothing can be saved any more: torchrun ends those that are left.
    """
    with received(_end) as own:
        try:
            yield StopSignal(world, own)
        except RuntimeError as error:
            if own.number and lost_another(error):
                _end(own.number)
            raise


def _end(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
