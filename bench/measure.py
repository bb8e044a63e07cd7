"""What every bench shares: interleaved timing, the machine it ran on, and a result file."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastselfie.files import replace_json
from fastselfie.training.versions import versions

_BURST_CALLS = 16  # few enough for the queue of about a thousand launches that a device keeps
_HEAD_START = 1.5  # times the host's time of a burst that the device is held up for
_CYCLES_PER_S = 2e9  # a device's clock at most, near enough


def interleaved(
    sides: Mapping[str, Callable[[], object]], rounds: int, steps: int | Mapping[str, int], device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of each side, one value a round, the sides taking turns in every round.

    A slow spell of the machine then falls on all sides alike. Two steps a side are warm-up and not counted. A value
    is the wall time of ``steps`` steps, the same number for all sides or each one's own, the device waited for before
    and after, divided by that number.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step()
        step()
    for _ in range(rounds):
        for name, step in sides.items():
            count = steps if isinstance(steps, int) else steps[name]
            wait(device)
            started = time.perf_counter()
            for _ in range(count):
                step()
            wait(device)
            seconds[name].append((time.perf_counter() - started) / count)
    return seconds


def interleaved_ms(
    sides: Mapping[str, Callable[[], object]], rounds: int, least_ms: float, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds a call of each side, one value a round, the sides taking turns in every round.

    A round calls a side for at least ``least_ms`` of the wall clock. On a CUDA device a value is the device's time,
    between events: the device is held up while the host enqueues a burst of calls, so that the host's time for a call
    does not count. Events are read once a round. One call and one burst a side are warm-up and not counted; the burst
    tells how many a round takes.
    """
    plans = {name: _plan(step, least_ms, device) for name, step in sides.items()}
    ms: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            ms[name].append(_round_ms(step, plans[name], device))
    return ms


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A round of one side: bursts, and the host's time a burst."""

    bursts: int
    burst_calls: int
    host_s: float


def _plan(step: Callable[[], object], least_ms: float, device: torch.device) -> _Plan:
    calls = _BURST_CALLS if device.type == "cuda" else 1
    step()
    wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        step()
    host_s = time.perf_counter() - started
    wait(device)
    burst_ms = (time.perf_counter() - started) * 1e3  # the host's or the device's, whichever is longer
    return _Plan(bursts=max(1, math.ceil(least_ms / burst_ms)), burst_calls=calls, host_s=host_s)


def _round_ms(step: Callable[[], object], plan: _Plan, device: torch.device) -> float:
    calls = plan.bursts * plan.burst_calls
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - started) * 1e3 / calls
    wait(device)
    spans = []
    for _ in range(plan.bursts):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(plan.host_s * _HEAD_START * _CYCLES_PER_S))
        start.record()
        for _ in range(plan.burst_calls):
            step()
        end.record()
        spans.append((start, end))
    wait(device)
    return sum(start.elapsed_time(end) for start, end in spans) / calls


def summary(seconds: list[float], images: int) -> dict[str, Any]:
    """Median, extremes and all values of images a second."""
    rates = sorted(images / value for value in seconds)
    return {
        "median": statistics.median(rates), "lowest": rates[0], "highest": rates[-1], "n": len(rates), "all": rates,
    }  # fmt: skip


def told(rates: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each side's `summary`."""
    return "\n".join(
        f"{name:17} {rate['median']:.0f} images/s (n = {rate['n']}, {rate['lowest']:.0f} to {rate['highest']:.0f})"
        for name, rate in rates.items()
    )


def product_flops(dtype: torch.dtype, device: torch.device, smoke: bool = False) -> float:
    """The device's own speed at a large square matrix product, FLOP/s: the ceiling that a step is held against. In a
    ``smoke`` run at a small one. fp32 ones with TF32 where convolutions have it."""
    size, steps = (8192, 20) if device.type == "cuda" else (512 if smoke else 2048, 3)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        best = min(interleaved({"product": lambda: a @ b}, rounds=5, steps=steps, device=device)["product"])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / best


def copy_rate(device: torch.device, smoke: bool = False) -> float:
    """Bytes a second, read and written, of a copy that no cache holds: the ceiling for what memory bounds. In a
    ``smoke`` run of a small one."""
    source = torch.randn((2**22 if smoke else 2**26) if device.type == "cpu" else 2**29, device=device)
    target = torch.empty_like(source)
    ms = interleaved_ms({"copy": lambda: target.copy_(source)}, 5, 10, device)["copy"]
    return 2e3 * source.nbytes / min(ms)


def write(path: Path, result: dict[str, Any], device: torch.device) -> None:
    """Write ``result`` with the command, device and versions that it was made with; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(path, {"made_by": made_by(device), **result})


def made_by(device: torch.device) -> dict[str, Any]:
    """The command, device and versions of this process."""
    return {
        "command": " ".join(["python -m", _module(), *map(_shortened, sys.argv[1:])]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        **versions(),
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


def _shortened(word: str) -> str:
    """A path of this machine is nobody else's business: its last part alone."""
    option, equals, value = word.rpartition("=")
    return option + equals + (Path(value).name if value.startswith(("/", "~")) else value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
