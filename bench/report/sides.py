"""One section of a report: sides that do the same work, made ready, counted, timed in turns, and told as rows.

A side that cannot run, or fails, has a row that says why.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bench.measure import interleaved, wait
from bench.report.counting import count
from bench.report.device_time import busy_s
from bench.report.machine import Machine
from bench.report.rows import Row, Timing, not_run, row
from bench.report.settings import Bench
from fastselfie.kernels import using

Step = Callable[[], object]
_MOST_STEPS = 200  # a side and round


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to do a section's work.

    Attributes:
        build: makes the step. dtype: of its products, and so which ceiling it has. lacks: why it cannot run here.
        counted_as: the side whose counted operations are its own too; given where they cannot be counted in passing,
            inside a compiled graph.
        kernels: whether those around the trunk run in it, tracing and backward included. Operations are counted without
            them, and bytes not at all with them. trunk: whether its stages run as kernels too. images: that a step
            works on, where it is not the section's number. replays: whether a step is a recorded CUDA graph, which has
            its memory from the recording, so that no peak is told.
    """

    name: str
    build: Callable[[], Step]
    dtype: str
    lacks: str = ""
    counted_as: str = ""
    kernels: Literal["on", "off"] = "off"
    trunk: Literal["fused", "plain"] = "plain"
    images: int | None = None
    replays: bool = False


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A side made ready. Bytes of ``peak_bytes`` are those over what was there before it."""

    step: Step
    startup_s: float
    step_s: float
    flops: int | None
    moved_bytes: int | None
    peak_bytes: int | None


def held(step: Step, kernels: Literal["on", "off"], trunk: Literal["fused", "plain"] = "plain") -> Step:
    """``step`` under that choice of kernels, tracing and backward included."""

    def run() -> None:
        with using(kernels, trunk):
            step()

    return run


class Turn:
    """A side's step in the rounds. It stops at its first error, which is then there to tell."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.error = ""

    def __call__(self) -> None:
        if not self.error:
            try:
                self._step()
            except Exception as error:  # such as a recorded graph whose output was overwritten
                self.error = one_line(error)


def measure(
    section: str, sides: Sequence[Side], bench: Bench, machine: Machine, *, images: int | None
) -> tuple[list[Row], dict[str, Step]]:
    """The rows of a section and the steps that ran. A side and round takes as many steps as half a second does.

    Args:
        images: that a step works on.
    """
    ready, refused = {}, {}
    for side in sides:
        if why := side.lacks or bench.left_out(side.name):
            refused[side.name] = not_run(section, side.name, why)
            continue
        try:
            ready[side.name] = prepare(side, bench.device)
        except Exception as error:  # whatever a compiler or a device throws belongs into the table
            refused[side.name] = not_run(section, side.name, one_line(error), failed=True)
    if not ready:
        return list(refused.values()), {}
    taken = {name: min(_MOST_STEPS, max(1, math.ceil(bench.round_s / one.step_s))) for name, one in ready.items()}
    turns = {name: Turn(one.step) for name, one in ready.items()}
    seconds = interleaved(turns, bench.rounds, taken, bench.device)
    busy = {name: busy_s(turn, bench.device) for name, turn in turns.items()}
    refused |= {
        name: not_run(section, name, turn.error, failed=True) for name, turn in turns.items() if turn.error
    }  # fmt: skip
    rows = []
    for side in sides:
        if side.name in refused:
            rows.append(refused[side.name])
            continue
        counted = ready.get(side.counted_as or side.name)
        timing = Timing(
            seconds=seconds[side.name], startup_s=ready[side.name].startup_s, dtype=side.dtype,
            images=side.images or images, flops=counted.flops if counted else None,
            moved_bytes=ready[side.name].moved_bytes, peak_bytes=ready[side.name].peak_bytes,
            busy_s=busy[side.name], counted_as=side.counted_as,
        )  # fmt: skip
        rows.append(row(section, side.name, timing, machine))
    return rows, {name: ready[name].step for name in turns if name not in refused}


def prepare(side: Side, device: torch.device) -> Ready:
    """Build a side, run its first step, count one step and time one."""
    on_cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_cuda else 0
    started = time.perf_counter()
    with using(side.kernels, side.trunk):
        made = side.build()
    step = held(made, side.kernels, side.trunk)
    step()
    wait(device)
    startup_s = time.perf_counter() - started
    counts = None if side.counted_as else count(held(made, "off"))
    wait(device)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    step()
    wait(device)
    step_s = time.perf_counter() - started
    seen = counts if side.kernels == "off" else None
    live_bytes = seen.peak_bytes if seen else None
    peak_bytes = torch.cuda.max_memory_allocated(device) - before if on_cuda else live_bytes
    return Ready(
        step=step, startup_s=startup_s, step_s=step_s, flops=counts.flops if counts else None,
        moved_bytes=seen.moved_bytes if seen else None, peak_bytes=None if side.replays else peak_bytes,
    )  # fmt: skip


def one_line(error: BaseException) -> str:
    """An exception's kind and the first line of what it says; of paths their last parts."""
    told: list[Any] = [line for line in str(error).splitlines() if line.strip()]
    if not told:
        return type(error).__name__
    words = (f"...{word[word.rindex('/') :]}" if word.startswith("/") else word for word in told[0].split())
    return f"{type(error).__name__}: {' '.join(words)[:200]}"
