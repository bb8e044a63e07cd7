"""What the timings of the kernels say: rows of a result, their table, and which shapes the kernels are slower in."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.kernel_cases import Case, Key
from bench.report.whole_step import COMPILED, COMPILED_FUSED, FUSED_TRUNK
from bench.report.whole_step import SECTION as WHOLE_STEP

Row = dict[str, Any]


def row(case: Case, direction: str, moved_bytes: int, ms: Mapping[str, Sequence[float]], copy_gb_per_s: float) -> Row:
    """One operation, shape and direction. ``ms``: a call's time, a value a round, of the sides that ran."""
    sides = {name: _side(values, moved_bytes, copy_gb_per_s) for name, values in ms.items()}
    made: Row = {
        "operation": case.operation, "case": case.name, "dtype": str(case.dtype).removeprefix("torch."),
        "direction": direction, "key": [case.key[0], list(case.key[1])], "bytes": moved_bytes,
        "sides": sides,
    }  # fmt: skip
    for other in ("plain", "compiled"):
        if "kernel" in sides and other in sides:
            made[f"speedup_over_{other}"] = sides[other]["median_ms"] / sides["kernel"]["median_ms"]
    return made


def _side(ms: Sequence[float], moved_bytes: int, copy_gb_per_s: float) -> dict[str, Any]:
    median_ms = statistics.median(ms)
    gb_per_s = moved_bytes / median_ms / 1e6
    return {
        "median_ms": median_ms, "lowest_ms": min(ms), "highest_ms": max(ms), "n": len(ms), "all_ms": list(ms),
        "gb_per_s": gb_per_s, "share_of_copy": gb_per_s / copy_gb_per_s,
    }  # fmt: skip


def slower_than_compiled(rows: Iterable[Row]) -> list[Key]:
    """Operations and shapes of which some case takes the kernel longer than the compiled reference, by the medians of
    forward and backward together."""
    totals_ms: dict[tuple[str, str], dict[str, float]] = {}
    keys: dict[tuple[str, str], Key] = {}
    for one in rows:
        case, sides = (one["operation"], one["case"]), one["sides"]
        if not {"kernel", "compiled"} <= sides.keys():
            continue
        total_ms = totals_ms.setdefault(case, {"kernel": 0.0, "compiled": 0.0})
        for name in total_ms:
            total_ms[name] += sides[name]["median_ms"]
        keys[case] = one["key"][0], tuple(one["key"][1])
    lost = (case for case, total_ms in totals_ms.items() if total_ms["kernel"] > total_ms["compiled"])
    return sorted({keys[case] for case in lost})


def slower_in(folder: Path) -> frozenset[Key]:
    """What `fastselfie.kernels.dispatch.SLOWER` has to hold: the losses of all results in a folder."""
    results = (json.loads(path.read_text()) for path in sorted(folder.glob("kernels_*.json")))
    return frozenset((name, tuple(shape)) for result in results for name, shape in result["slower_than_compiled"])


def trunk_wins_on(folder: Path) -> frozenset[str]:
    """What `fastselfie.kernels.dispatch.FASTER_TRUNK` has to hold: devices on which the whole step with the fused trunk
    beats FastSelfie's own without it, compiled, in every round of every report in a folder that has both. Smoke runs do
    not count."""
    won: dict[str, bool] = {}
    for path in sorted(folder.glob("*/report.json")):
        report = json.loads(path.read_text())
        steps = (one for one in report["rows"] if one["section"] == WHOLE_STEP and "ms" in one)
        ms = {one["side"]: one["ms"] for one in steps}
        plain = [ms[side]["lowest"] for side in (COMPILED, COMPILED_FUSED) if side in ms]
        if FUSED_TRUNK in ms and plain and not report["settings"]["smoke"]:
            device = report["made_by"]["device"]
            won[device] = won.get(device, True) and ms[FUSED_TRUNK]["highest"] < min(plain)
    return frozenset(device for device, wins in won.items() if wins)


def markdown(rows: Iterable[Row]) -> str:
    """A table for a README."""
    lines = [
        "| operation | case | | kernel ms | plain ms | compiled ms | GB/s | of a copy | over plain | over compiled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        sides = one["sides"]
        first = sides.get("kernel", sides["plain"])
        cells = [one["operation"], one["case"], one["direction"]]
        cells += [
            f"{sides[name]['median_ms']:.4f}" if name in sides else "" for name in ("kernel", "plain", "compiled")
        ]
        cells += [f"{first['gb_per_s']:.0f}", f"{first['share_of_copy']:.0%}"]
        ratios = (one.get(f"speedup_over_{other}") for other in ("plain", "compiled"))
        cells += [f"{ratio:.2f}" if ratio else "" for ratio in ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
