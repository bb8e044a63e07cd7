"""Where a run may be put beside others: cores of a CPU, or memory of GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from fastselfie.pipelines.allotment import cores

_MOST_ON_A_GPU = 4
_CONTEXT_GIB = 1.0  # what a process holds on a GPU beside its tensors
_SPARE = 1.2  # runs of one kind differ a little
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Place(Protocol):
    """What decides where the next run goes."""

    def next(self, running: Sequence[Mapping[str, str]], peaks_gib: Sequence[float | None]) -> dict[str, str] | None:
        """The environment of one more run, or None while there is no room.

        Args:
            running: environments that this gave to the runs that still run. peaks_gib: of each, the most memory that
            it has logged; None before its first line.
        """
        ...


class Cores:
    """``jobs`` runs side by side, each with its share of the cores."""

    def __init__(self, jobs: int | None) -> None:
        self.jobs = jobs or cores()
        self._threads = max(1, cores() // self.jobs)

    def next(self, running: Sequence[Mapping[str, str]], peaks_gib: Sequence[float | None]) -> dict[str, str] | None:
        """See `Place`."""
        return None if len(running) >= self.jobs else {"OMP_NUM_THREADS": str(self._threads)}


class Gpus:
    """Runs go to the GPU that has fewest. Without ``jobs``, one more only where all runs on it have shown what they
    need and that much is still free."""

    def __init__(self, jobs: int | None, free_gib: Sequence[float] | None = None) -> None:
        """Args: free_gib: of each GPU, before any run; None asks the driver."""
        self._jobs = jobs
        self._free_gib = _free_gib() if free_gib is None else list(free_gib)
        # Ours may be some of the machine's alone, by number or UUID: a run is given the name that we know it by.
        named = os.environ.get(_VISIBLE)
        names = named.split(",") if named else map(str, range(len(self._free_gib)))
        self._names = [name.strip() for name, _ in zip(names, self._free_gib, strict=False)]

    def next(self, running: Sequence[Mapping[str, str]], peaks_gib: Sequence[float | None]) -> dict[str, str] | None:
        """See `Place`."""
        if self._jobs is not None and len(running) >= self._jobs:
            return None
        on: list[list[float | None]] = [[] for _ in self._free_gib]
        for environment, peak in zip(running, peaks_gib, strict=True):
            on[self._names.index(environment[_VISIBLE])].append(peak)
        for index in sorted(range(len(on)), key=lambda gpu: len(on[gpu])):
            if self._jobs is not None or not on[index] or self._has_room(index, on[index]):
                return {_VISIBLE: self._names[index]}
        return None

    def _has_room(self, gpu: int, peaks_gib: Sequence[float | None]) -> bool:
        known = [peak + _CONTEXT_GIB for peak in peaks_gib if peak is not None]
        if len(known) < len(peaks_gib) or len(known) >= _MOST_ON_A_GPU:
            return False
        return sum(known) + _SPARE * max(known) <= self._free_gib[gpu]


def places(device: str, jobs: int | None) -> Place:
    """Where runs on ``device``, ``cpu`` or ``cuda``, go."""
    return Gpus(jobs) if device == "cuda" else Cores(jobs)


def _free_gib() -> list[float]:
    return [torch.cuda.mem_get_info(gpu)[0] / 2**30 for gpu in range(torch.cuda.device_count())]
