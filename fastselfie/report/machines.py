"""What computed the steps of runs: machines, versions and settings that their speed depends on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fastselfie.config import RunConfig
from fastselfie.report.runs import Run
from fastselfie.report.tables import Row, Table
from fastselfie.training.starts import Start
from fastselfie.training.versions import machine, software


def machines_table(runs: Sequence[Run[RunConfig]]) -> Table | None:
    """A row for all that was computed alike; None where no run tells. Speeds of different rows do not compare."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        alike = [(next(starts).step, what) for what, starts in groupby(run.starts, _computed)]
        ends = [step for step, _ in alike[1:]] + [run.step]
        for (step, what), end in zip(alike, ends if alike else (), strict=True):
            if end <= step:  # nothing of it is logged yet
                continue
            part = f" (steps {step + 1:,} to {end:,})" if len(alike) > 1 else ""
            rows.setdefault(what, []).append(run.name + part)
    if not rows:
        return None
    everything = [run.name for run in runs]
    return Table(
        caption="What computed the steps.",
        headings=("machine", "processes", "versions", "settings", "runs"),
        numbers=frozenset({"processes"}),
        rows=tuple(Row(cells=(*what, "all" if of == everything else ", ".join(of))) for what, of in rows.items()),
        row_header="machine",
    )


def _computed(start: Start) -> tuple[str, str, str, str]:
    """Machine, processes, versions, settings. A setting that is not in use is left out."""
    settings = [
        f"{name.replace('_', ' ')} {value}" for name, value in start.settings.items() if value not in (None, False)
    ]
    processes = str(start.made_by.get("processes"))
    return machine(start.made_by), processes, software(start.made_by), " · ".join(settings)
