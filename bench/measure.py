"""What every bench shares: interleaved timing, the machine it ran on, and a result file."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastselfie.training.run_folder import versions


def interleaved(
    sides: Mapping[str, Callable[[], object]], rounds: int, steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of each side, one value a round, the sides taking turns in every round.

    A slow spell of the machine then falls on all sides alike. Two steps a side are warm-up and not counted. A value
    is the wall time of ``steps`` steps, the device waited for before and after, divided by ``steps``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step()
        step()
    for _ in range(rounds):
        for name, step in sides.items():
            _wait(device)
            started = time.perf_counter()
            for _ in range(steps):
                step()
            _wait(device)
            seconds[name].append((time.perf_counter() - started) / steps)
    return seconds


def summary(seconds: list[float], images: int) -> dict[str, Any]:
    """Median, extremes and all values of images a second."""
    rates = sorted(images / value for value in seconds)
    return {
        "median": statistics.median(rates), "lowest": rates[0], "highest": rates[-1], "n": len(rates), "all": rates,
    }  # fmt: skip


def product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """The device's own speed at a large square matrix product, FLOP/s: the ceiling that a step is held against."""
    size, steps = (8192, 20) if device.type == "cuda" else (2048, 3)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(interleaved({"product": lambda: a @ b}, rounds=5, steps=steps, device=device)["product"])
    return 2 * size**3 / best


def write(path: Path, result: dict[str, Any], device: torch.device) -> None:
    """Write ``result`` with the command, device and versions that it was made with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    made = {
        "command": "python -m " + " ".join([_module(), *sys.argv[1:]]),
        "device": name,
        "threads": torch.get_num_threads(),
        **versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made_by": made, **result}, indent=2) + "\n")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
