"""A row of a result: what was measured of one side, what follows from it, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.report.machine import Machine
from bench.report.verdict import Shares, verdict

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was measured of one side; None where there is nothing to tell.

    Attributes:
        seconds: a step's, one value a round. startup_s: making it ready and the first step. dtype: of its products.
        images: that a step works on. flops, moved_bytes, peak_bytes: see `bench.report.counting`. busy_s: see
            `bench.report.device_time`. decode, decoder, all_reduce: see `bench.report.verdict.Shares`. counted_as: the
            side that ``flops`` were counted on.
    """

    seconds: Sequence[float]
    startup_s: float | None = None
    dtype: str = "fp32"
    images: int | None = None
    flops: int | None = None
    moved_bytes: int | None = None
    peak_bytes: int | None = None
    busy_s: float | None = None
    decode: float | None = None
    decoder: float | None = None
    all_reduce: float | None = None
    counted_as: str = ""


def row(section: str, side: str, timing: Timing, machine: Machine) -> Row:
    """Rates and shares are of the median. No FLOP/s where there are no dense products."""
    median_s = statistics.median(timing.seconds)
    flop_rate = timing.flops / median_s if timing.flops else None
    byte_rate = timing.moved_bytes / median_s if timing.moved_bytes else None
    shares = Shares(
        decode=timing.decode, decoder=timing.decoder, all_reduce=timing.all_reduce,
        idle=None if timing.busy_s is None else max(0.0, 1 - timing.busy_s / median_s),
        matrix=flop_rate / machine.matrix[timing.dtype] if flop_rate else None,
        copy=byte_rate / machine.copy if byte_rate else None,
    )  # fmt: skip
    return {
        "section": section, "side": side, "dtype": timing.dtype,
        "ms": spread([1e3 * value for value in timing.seconds]), "startup_s": timing.startup_s,
        "images_per_second": timing.images / median_s if timing.images else None,
        "gflop": _scaled(timing.flops or None, 1e9), "tflops": _scaled(flop_rate, 1e12),
        "counted_as": timing.counted_as or side,
        "gbyte": _scaled(timing.moved_bytes, 1e9), "gb_per_s": _scaled(byte_rate, 1e9),
        "peak_mib": _scaled(timing.peak_bytes, 2**20),
        "shares": asdict(shares), "verdict": verdict(shares),
    }  # fmt: skip


def not_run(section: str, side: str, why: str, failed: bool = False) -> Row:
    """A side without figures. ``failed``: it was tried."""
    return {"section": section, "side": side, "not_run": why, "failed": failed}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, number and all values."""
    return {
        "median": statistics.median(values), "lowest": min(values), "highest": max(values), "n": len(values),
        "all": list(values),
    }  # fmt: skip


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
