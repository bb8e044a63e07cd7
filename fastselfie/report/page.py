"""The report: everything is read and drawn before anything is written, and each file is written whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fastselfie.config import FinetuneConfig, PretrainConfig, RunConfig
from fastselfie.errors import UserError
from fastselfie.files import replace_bytes
from fastselfie.report import comparison, curves, pictures, tables
from fastselfie.report.charts import CHARTS, MOST_POINTS, Chart, Quantity, chance, chance_levels, quantities_of
from fastselfie.report.machines import machines_table
from fastselfie.report.placements import Placements, read_placements
from fastselfie.report.probes import Probe, is_probe, probes_table, read_probes
from fastselfie.report.runs import Run, of_kind, read_runs
from fastselfie.report.template import render

FIGURES = "figures"


@dataclass(frozen=True, kw_only=True)
class ChartPanel:
    """A chart on the page. ``key`` tells its curves apart where there are several; ``averaged``: see
    `charts.curve_points`."""

    chart: Chart
    svg: Markup
    key: list[Quantity]
    chance: bool
    averaged: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture of figure 2 at a moment."""

    image: str
    step: int
    right: int
    masked: int


def report(runs: Sequence[Path], out: Path) -> None:
    """Write a page about ``runs``, probes among them, to ``out``, and each run's figures as PNG files into its folder.

    Raises:
        UserError: a run is none, has logged nothing yet or is damaged, and then nothing is written; or a file cannot
        be written.
    """
    check_out(out)
    probed = [path for path in runs if is_probe(path)]
    probes, others = read_probes(probed), [path for path in runs if path not in probed]
    found = read_runs(others) if others or not probed else []
    if not found and not probes:
        raise UserError(f"{probed[0]}: has no result yet; wait for it")
    placements = {run.path: read_placements(run.path, run.config) for run in of_kind(found, PretrainConfig)}
    text = page(found, placements, probes)
    drawn = [(run.path / FIGURES, _figures(run, placements.get(run.path))) for run in found]
    write_page(out, text)
    for folder, figures in drawn:
        try:
            folder.mkdir(exist_ok=True)
            for name, data in figures.items():
                replace_bytes(folder / name, data)
        except OSError as error:
            what = f"{folder}: cannot be written ({error.strerror})"
            raise UserError(f"{what}; {out} is written, the run's figures as PNG need a folder to write to") from None


def check_out(out: Path) -> None:
    """Raises: UserError: no page can be written to ``out``, to judge from its name."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: must be a file that ends in .html")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file in it, such as {out / 'report.html'}")


def write_page(out: Path, text: str) -> None:
    """Write a page. Raises: UserError: that fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(out, text.encode(errors="replace"))  # a folder's name may be any bytes
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from None


def page(
    runs: Sequence[Run[RunConfig]], placements: dict[Path, Placements | None], probes: Sequence[Probe] = ()
) -> str:
    """The page's HTML.

    Args:
        placements: by the folder of every pretraining run, None where it has none.
    """
    pretraining, finetuning = of_kind(runs, PretrainConfig), of_kind(runs, FinetuneConfig)
    return render(
        "fastselfie.report", "page.html.jinja",
        runs=[*runs, *probes], pretraining=pretraining, finetuning=finetuning,
        probes=probes, probes_table=probes_table(probes),
        panels={"pretraining": _panels(pretraining, "pretraining"), "finetuning": _panels(finetuning, "finetuning")},
        headlines=tables.headlines, steps=tables.steps,
        pretraining_table=tables.pretraining_table(pretraining),
        finetuning_table=comparison.finetuning_table(finetuning, pretraining),
        seeds_table=comparison.seeds_table(finetuning, pretraining),
        differences=tables.differences, machines_table=machines_table, counted=counted,
        without_figure_2=[run.name for run in pretraining if placements[run.path] is None],
        figure_2={path: _cells(found) for path, found in placements.items()}, chance=chance,
    )  # fmt: skip


def counted(number: int, noun: str) -> str:
    """``2 runs``; nothing of none."""
    return f"{number} {noun}{'s' * (number > 1)}" if number else ""


def _panels(runs: Sequence[Run[RunConfig]], section: str) -> list[ChartPanel]:
    """A section's charts, without those that no run has a figure for."""
    panels = []
    for chart in CHARTS:
        quantities = quantities_of(chart, runs)
        if quantities:
            longest = max(len(run.series(quantity.metric)) for run in runs for quantity in quantities)
            panels.append(
                ChartPanel(
                    chart=chart,
                    svg=Markup(curves.svg(chart, runs, f"{section}-{chart.name}")),
                    key=quantities if len(quantities) > 1 else [],
                    chance=chart.name == "accuracy" and bool(chance_levels(runs)),
                    averaged=longest > MOST_POINTS,
                )
            )
    return panels


def _cells(placements: Placements | None) -> list[list[Cell]]:
    """Figure 2: a row for each picture, a cell for each moment."""
    if placements is None:
        return []
    enlarged = pictures.enlargement(len(placements.pictures[0])) > 1
    return [
        [
            Cell(
                image=pictures.data_uri(pictures.framed(placements, index, moment), enlarged),
                step=moment.step,
                right=moment.right(index),
                masked=len(moment.places[index]),
            )
            for moment in placements.moments
        ]
        for index in range(len(placements.pictures))
    ]


def _figures(run: Run[Any], placements: Placements | None) -> dict[str, bytes]:
    """The PNG files of a run alone, by name."""
    drawn = {f"{chart.name}.png": curves.png(chart, run) for chart in CHARTS if quantities_of(chart, [run])}
    if placements is not None:
        drawn["placements.png"] = pictures.sheet(placements)
    return drawn
