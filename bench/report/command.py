"""The command: sections one after the other, and their files in the folder after each."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.measure import made_by
from bench.report import data, parts
from bench.report.device_time import table
from bench.report.machine import Machine, measure_machine
from bench.report.operations import operations
from bench.report.processes import several_processes
from bench.report.rows import Row, not_run
from bench.report.settings import Bench, add_options, settle
from bench.report.sides import one_line
from bench.report.tables import markdown, relate, show
from bench.report.whole_step import COMPILED, COMPILED_FUSED, EAGER, whole_step
from fastselfie.pipelines.source import Source
from fastselfie.training.files import replace_bytes, replace_json


class Record:
    """A result that grows by rows; its JSON and Markdown are written after each section, so that a run that is cut
    short leaves what it has."""

    def __init__(self, name: str, title: str, bench: Bench, machine: Machine | None) -> None:
        self._name, self._title, self._out = name, title, bench.out
        self.told: dict[str, Any] = {"made_by": made_by(bench.device), "settings": bench.settings}
        if machine is not None:
            self.told["machine"] = asdict(machine)
        self.rows: list[Row] = []
        self.told["rows"] = self.rows

    def add(self, section: str, work: Callable[[], list[Row]]) -> None:
        """The rows that ``work`` makes, or one that says what it failed with."""
        try:
            rows = work()
        except Exception as error:  # one section's failure must not cost the others
            rows = [not_run(section, "all", one_line(error), failed=True)]
        relate(rows)
        self.rows += rows
        self.write()

    def write(self) -> None:
        """Both files, each whole or as it was."""
        replace_json(self._out / f"{self._name}.json", self.told)
        replace_bytes(self._out / f"{self._name}.md", markdown(self._title, self.told).encode())

    @property
    def failed(self) -> bool:
        """Whether something that was tried did not work."""
        return any(row.get("failed") for row in self.rows)

    def row(self, section: str, side: str) -> Row:
        """That row; empty if it did not run."""
        return next((r for r in self.rows if (r["section"], r["side"]) == (section, side) and "ms" in r), {})


def add_parser(commands: Any) -> None:
    """`report` among the commands."""
    parser = commands.add_parser("report", help="everything that this machine can run, against its own ceilings")
    add_options(parser)
    parser.add_argument("--data", type=Path, help="a folder of JPEG or PNG files; rendered scenes when not given")
    parser.add_argument("--processes", type=int, default=1, help="also a step of so many processes; 1 when not given")
    parser.set_defaults(run=report)


def report(given: argparse.Namespace) -> int:
    """Exit status: 0, or 1 if a side failed that should have run.

    Raises:
        UserError: an option makes no sense here.
    """
    bench = settle(given)
    with ExitStack() as stack:
        lacks = data.dali_lacks()
        source = None if lacks and given.data is None else stack.enter_context(data.opened(bench, given.data))
        machine = measure_machine(bench.device)
        record = Record("report", "Bench report", bench, machine)
        _compute(bench, machine, record)
        _load(bench, machine, record, source, lacks)
    _draw(bench, record)
    show(record.told)
    return 1 if record.failed else 0


def _compute(bench: Bench, machine: Machine, record: Record) -> None:
    """The sections without files."""
    record.add("operation", lambda: operations(bench, machine))
    record.add(parts.TRUNK, lambda: parts.trunk_alone(bench, machine))
    record.add(parts.POOLER, lambda: parts.pooler_and_head(bench, machine))
    record.add(parts.OPTIMISER, lambda: parts.optimiser(bench, machine))
    record.add("whole step", lambda: _whole_step(bench, machine))
    flops = _flops(record)
    record.add("several processes", lambda: several_processes(bench, machine, flops))


def _whole_step(bench: Bench, machine: Machine) -> list[Row]:
    """Its rows; and the profile of our compiled step, where there is none of the eager one, as text."""
    rows, steps = whole_step(bench, machine)
    name = next((name for name in (COMPILED_FUSED, COMPILED, EAGER) if name in steps), None)
    if name is not None:
        text = f"One step: {name}\n{table(steps[name], bench.device)}"
        replace_bytes(bench.out / "profile.txt", text.encode())
    return rows


def _load(bench: Bench, machine: Machine, record: Record, source: Source | None, lacks: str) -> None:
    """The sections that read files."""
    if source is None:
        for section in (data.LOADER, data.END_TO_END):
            record.add(section, lambda section=section: [not_run(section, "fastselfie", lacks)])  # type: ignore[misc]
        return
    record.add(data.LOADER, lambda: data.loader_alone(bench, machine, source))
    record.add(data.END_TO_END, lambda: data.end_to_end(bench, machine, source, _flops(record)))


def _flops(record: Record) -> int | None:
    """Of our eager step."""
    gflop = record.row("whole step", EAGER).get("gflop")
    return round(gflop * 1e9) if gflop else None


def _draw(bench: Bench, record: Record) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        record.told["no_plot"] = "matplotlib is not installed"
        record.write()
        return
    from bench.report.roofline import png

    replace_bytes(bench.out / "roofline.png", png(record.told))
