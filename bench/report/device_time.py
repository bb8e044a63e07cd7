"""How long a CUDA device is at work in a step, and the table of torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.measure import wait

_ROWS = 40
_WIDTH = 70  # of a name, most of which are a kernel's and long


def busy_s(step: Callable[[], object], device: torch.device) -> float | None:
    """Seconds that kernels and copies take in one step, added up; None on a CPU, which launches nothing, and where the
    profiler fails or sees nothing of the device: no reason to lose timings.

    The profiler slows the host down and not the kernels: held against a wall time measured without it.
    """
    if device.type != "cuda":
        return None
    try:
        events = _profiled(step, device).key_averages()
    except Exception:
        return None
    on_device = [one for one in events if one.device_type == DeviceType.CUDA and not one.is_user_annotation]
    return sum(float(one.self_device_time_total) for one in on_device) / 1e6 if on_device else None


def table(step: Callable[[], object], device: torch.device) -> str:
    """What takes longest in one step, as text."""
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = _profiled(step, device).key_averages()
    return str(averages.table(sort_by=order, row_limit=_ROWS, max_name_column_width=_WIDTH)) + "\n"


def _profiled(step: Callable[[], object], device: torch.device) -> Any:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        step()
        wait(device)
    return profiler
