"""The command: sections one after the other, and their files in the folder after each."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.report import data, evaluation, parts
from bench.report.device_time import table
from bench.report.machine import Machine, measure_machine
from bench.report.operations import operations
from bench.report.processes import several_processes
from bench.report.record import Record
from bench.report.rows import Row, not_run
from bench.report.settings import Bench, add_options, settle
from bench.report.sides import Step
from bench.report.tables import show
from bench.report.whole_step import COMPILED, COMPILED_FUSED, EAGER, FUSED_TRUNK, SECTION, whole_step
from fastselfie.config import require
from fastselfie.files import replace_bytes
from fastselfie.pipelines.source import Source


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
        require(not (lacks and given.data), f"--data {given.data}: {lacks}")
        source = None if lacks and given.data is None else stack.enter_context(data.opened(bench, given.data))
        machine = measure_machine(bench.device, bench.smoke)
        record = Record("report", "Bench report", bench, machine, plot=("roofline.png", _roofline))
        _compute(bench, machine, record)
        _load(bench, machine, record, source, lacks)
    show(record.told)
    return 1 if record.failed else 0


def _compute(bench: Bench, machine: Machine, record: Record) -> None:
    """The sections without files; first what matters most, should there be no time for all."""
    steps: dict[str, Step] = {}

    def whole() -> list[Row]:
        rows, found = whole_step(bench, machine)
        steps.update(found)
        return rows

    record.add(SECTION, whole)
    record.add("profile", lambda: _profile(steps, bench))
    steps.clear()
    flops = _flops(record)
    record.add(parts.TRUNK, lambda: parts.trunk_alone(bench, machine))
    record.add(parts.POOLER, lambda: parts.pooler_and_head(bench, machine))
    record.add(parts.OPTIMISER, lambda: parts.optimiser(bench, machine))
    record.add(evaluation.SECTION, lambda: evaluation.evaluation(bench, machine))
    record.add("operation", lambda: operations(bench, machine))
    record.add("several processes", lambda: several_processes(bench, machine, flops))


def _profile(steps: dict[str, Step], bench: Bench) -> list[Row]:
    """The profile of our fastest kind of step that ran, as text; no row."""
    name = next((name for name in (FUSED_TRUNK, COMPILED_FUSED, COMPILED, EAGER) if name in steps), None)
    if name is not None:
        text = f"One step: {name}\n{table(steps[name], bench.device)}"
        replace_bytes(bench.out / "profile.txt", text.encode())
    return []


def _load(bench: Bench, machine: Machine, record: Record, source: Source | None, lacks: str) -> None:
    """The sections that read files."""
    if source is None:
        missing = [not_run(section, "fastselfie", lacks) for section in (data.LOADER, data.END_TO_END)]
        record.add(data.LOADER, lambda: missing)
        return
    record.add(data.LOADER, lambda: data.loader_alone(bench, machine, source))
    record.add(data.END_TO_END, lambda: data.end_to_end(bench, machine, source, _flops(record)))


def _flops(record: Record) -> int | None:
    """Of our eager step."""
    gflop = record.row(SECTION, EAGER).get("gflop")
    return round(gflop * 1e9) if gflop else None


def _roofline(told: dict[str, Any]) -> bytes:
    from bench.report.roofline import png

    return png(told)
