"""The charts of runs: as SVG for the page, and as PNG for a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from fastselfie.config import RunConfig
from fastselfie.report import drawing
from fastselfie.report.charts import EVALUATED, Chart, Quantity, chance_levels, curve_points, quantities_of
from fastselfie.report.palette import colour_of, dashes_of
from fastselfie.report.runs import Run

_LONGEST = 48  # letters of a run's name that fit into a title
_FEW = 60  # points up to which a measurement has its mark
_WIDTHS = {"first": 1.8, "second": 1.3, "faint": 1.0}


def svg(chart: Chart, runs: Sequence[Run[RunConfig]], identity: str) -> str:
    """An ``svg`` element of a chart; see `drawing.svg`."""
    return drawing.svg(lambda axes, colours: _draw(axes, chart, runs, colours), identity, _described(chart, runs))


def png(chart: Chart, run: Run[RunConfig]) -> bytes:
    """A PNG file of a chart of one run alone, on white, with title, axis and legend."""
    name = run.name if len(run.name) <= _LONGEST else f"…{run.name[-_LONGEST:]}"
    title = f"{chart.title}: {name}"
    legend = len(quantities_of(chart, [run])) > 1
    return drawing.png({title: lambda axes, colours: _draw(axes, chart, [run], colours)}, legend)


def _draw(axes: Axes, chart: Chart, runs: Sequence[Run[RunConfig]], colours: Mapping[str, str]) -> None:
    for index, run in enumerate(runs):
        for quantity in quantities_of(chart, [run]):
            _draw_curve(axes, run, quantity, colours[colour_of(index)], dashes_of(index), colours["card"])
    if chart.name == "accuracy":
        for level in chance_levels(runs):
            axes.axhline(level, color=colours["muted"], linewidth=1, linestyle=(0, (1, 2)), label="chance")
    if chart.signed:
        axes.axhline(0, color=colours["muted"], linewidth=1, zorder=1)
    for bound in (chart.lowest, chart.highest):
        if bound is not None:
            axes.update_datalim([(axes.dataLim.x0, bound)])
            axes.autoscale_view(scalex=False)
    if chart.lowest is not None:
        axes.set_ylim(bottom=chart.lowest)
    tick = drawing.points if chart.signed else drawing.percent if chart.share else drawing.short
    drawing.furnish(axes, colours, "step", tick)
    drawing.against_steps(axes)


def _draw_curve(
    axes: Axes, run: Run[RunConfig], quantity: Quantity, colour: str, dashes: tuple[float, ...], inside: str
) -> None:
    """One quantity of one run. Quantities differ by weight and marks, so that dashes are free to tell runs apart."""
    steps, values = zip(*curve_points(run, quantity), strict=True)
    marked = len(steps) == 1 or (quantity.metric in EVALUATED and len(steps) <= _FEW)
    axes.plot(
        steps, values, label=quantity.label, color=colour, alpha=0.55 if quantity.role == "faint" else 1,
        linewidth=_WIDTHS[quantity.role], linestyle=(0, dashes) if dashes else "-", solid_joinstyle="round",
        marker="o" if marked else "", markersize=4, markeredgewidth=1.2,
        markerfacecolor=inside if quantity.role == "second" else colour,
        zorder=2 if quantity.role == "faint" else 3,
    )  # fmt: skip


def _described(chart: Chart, runs: Sequence[Run[RunConfig]]) -> str:
    """What somebody who does not see the chart is told: the last value of every curve."""
    told = []
    for run in runs:
        last = [(quantity.label, *run.series(quantity.metric)[-1]) for quantity in quantities_of(chart, [run])]
        told += [f"{run.name}: {label} {value:.4g} at step {step:,}" for label, step, value in last]
    return f"{chart.title} against the step. {'; '.join(told)}."
