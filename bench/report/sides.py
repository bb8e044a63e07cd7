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
            works on, where it is not the section's number.
    """

    name: str
    build: Callable[[], Step]
    dtype: str
    lacks: str = ""
    counted_as: str = ""
    kernels: Literal["on", "off"] = "off"
    trunk: Literal["fused", "plain"] = "plain"
    images: int | None = None


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


def measure(
    section: str, sides: Sequence[Side], bench: Bench, machine: Machine, *, images: int | None, steps: int | None = None
) -> tuple[list[Row], dict[str, Step]]:
    """The rows of a section and the steps that ran.

    Args:
        images: that a step works on. steps: a side and round; as many as half a second takes when not given.
    """
    ready, refused = {}, {}
    for side in sides:
        if side.lacks:
            refused[side.name] = not_run(section, side.name, side.lacks)
            continue
        try:
            ready[side.name] = prepare(side, bench.device)
        except Exception as error:  # whatever a compiler or a device throws belongs into the table
            refused[side.name] = not_run(section, side.name, one_line(error), failed=True)
    if not ready:
        return list(refused.values()), {}
    slowest_s = max(one.step_s for one in ready.values())
    taken = steps or min(_MOST_STEPS, max(1, math.ceil(bench.round_s / slowest_s)))
    turns = {name: one.step for name, one in ready.items()}
    seconds = interleaved(turns, bench.rounds, taken, bench.device)
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
            busy_s=busy_s(turns[side.name], bench.device), counted_as=side.counted_as,
        )  # fmt: skip
        rows.append(row(section, side.name, timing, machine))
    return rows, turns


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
    return Ready(
        step=step, startup_s=startup_s, step_s=step_s, flops=counts.flops if counts else None,
        moved_bytes=seen.moved_bytes if seen else None,
        peak_bytes=torch.cuda.max_memory_allocated(device) - before if on_cuda else live_bytes,
    )  # fmt: skip


def one_line(error: BaseException) -> str:
    """An exception's kind and the first line of what it says."""
    told: list[Any] = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {told[0].strip()[:200]}" if told else type(error).__name__
