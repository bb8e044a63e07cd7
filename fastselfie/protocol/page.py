"""A protocol as one page, and as files in its folder: everything is drawn before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fastselfie.errors import UserError
from fastselfie.files import replace_bytes
from fastselfie.protocol import ablations, figure3, figure4, paper, probe_figure, tables, wording, writers
from fastselfie.protocol.cells import Grid
from fastselfie.protocol.measured import Measured
from fastselfie.protocol.panels import COLOURS, LINES, Figure
from fastselfie.protocol.tuning_table import tuning_table
from fastselfie.report import drawing
from fastselfie.report.page import check_out, write_page
from fastselfie.report.tables import Row, Table
from fastselfie.report.template import render

TABLES, FIGURES = "tables", "figures"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure on the page: its charts' titles and ``svg`` elements."""

    title: str
    charts: tuple[tuple[str, Markup], ...]
    paper: bool


def write_report(measured: Measured, out: Path) -> None:
    """Write the page to ``out``, and the tables and figures into the protocol's folder.

    Raises:
        UserError: a run's metrics.jsonl is damaged, and then nothing is written; or a file cannot be written.
    """
    check_out(out)
    found, figures = all_tables(measured), all_figures(measured)
    text, files = _page(measured, found, figures), _files(found, figures)
    write_page(out, text)
    _write(measured.folder, files)


def all_tables(measured: Measured) -> list[Grid]:
    """Every table that there is something for."""
    found = (
        tables.table_1(measured), tables.table_2(measured), ablations.pretext_table(measured),
        ablations.accuracy_table(measured), tables.probe_table(measured), tuning_table(measured),
    )  # fmt: skip
    return [grid for grid in found if grid is not None]


def all_figures(measured: Measured) -> dict[str, list[Figure]]:
    """Every figure that there is something for, by what it is of the paper's, or ``probes``."""
    probes = probe_figure.figure(measured)
    return {
        "3": figure3.figures(measured),
        "4": figure4.figures(measured),
        "probes": [probes] if probes is not None else [],
    }


def _page(measured: Measured, found: list[Grid], figures: dict[str, list[Figure]]) -> str:
    return render(
        "fastselfie.protocol", "page.html.jinja", "page.css",
        measured=measured, tables={grid.name: _table(grid) for grid in found},
        notes={grid.name: grid.notes for grid in found},
        figures={of: [_shown(figure) for figure in group] for of, group in figures.items()},
        probe_names=list(probe_figure.curve_names(measured).values()),
        run=wording.what_was_run(measured), headlines=wording.headlines(measured),
        progress=wording.progress(measured), scope=wording.scope(measured),
        intervals=wording.intervals(found), paper_runs=paper.RUNS if paper.has_numbers(measured) else None,
        colours=COLOURS, dashes={which: "none" if line == "-" else "5 2" for which, line in LINES.items()},
    )  # fmt: skip


def _files(found: list[Grid], figures: dict[str, list[Figure]]) -> dict[str, bytes]:
    """The files of a protocol by their path inside its folder."""
    files = {}
    for grid in found:
        for suffix, writer in (("md", writers.to_markdown), ("csv", writers.to_csv), ("tex", writers.to_latex)):
            files[f"{TABLES}/{grid.name}.{suffix}"] = writer(grid).encode(errors="replace")
    return files | {f"{FIGURES}/{figure.name}.png": figure.png() for group in figures.values() for figure in group}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(path, data)
        except OSError as error:
            what = f"{path}: cannot be written ({error.strerror})"
            raise UserError(f"{what}; the protocol's tables and figures need its folder to write to") from None


def _shown(figure: Figure) -> Shown:
    charts: Sequence[tuple[str, Markup]] = [
        (panel.title, Markup(drawing.svg(panel.draw, f"{figure.name}-{index}", panel.description)))
        for index, panel in enumerate(figure.panels)
    ]
    return Shown(title=figure.title, charts=tuple(charts), paper=figure.paper)


def _table(grid: Grid) -> Table:
    headings = tuple(column.heading for column in grid.columns)
    return Table(
        caption=grid.caption,
        headings=headings,
        numbers=frozenset(column.heading for column in grid.columns if column.kind.flush_right),
        rows=tuple(Row(cells=tuple(row), first=line.first) for row, line in zip(grid.shown(), grid.lines, strict=True)),
        row_header=headings[0],
    )
