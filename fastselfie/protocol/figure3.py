"""The paper's Figure 3: training loss, test loss and test accuracy against the step, scratch against pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes

from fastselfie.protocol.measured import BASE, Measured
from fastselfie.protocol.panels import COLOURS, LINES, WORDS, Figure, Panel, slug
from fastselfie.report import drawing
from fastselfie.report.charts import thinned
from fastselfie.report.runs import read_lines
from fastselfie.training.run_folder import RunFolder

METRICS = {"loss": "Training loss", "test_loss": "Test loss", "test_accuracy": "Test accuracy"}
"""A panel's title by what metrics.jsonl calls it."""
_FEW = 12  # points up to which each has a mark


@dataclass(frozen=True, kw_only=True)
class Band:
    """Curves of several seeds at the steps that all of them have logged: mean, smallest, largest."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    seeds: int


def figures(measured: Measured) -> list[Figure]:
    """A figure for each encoder and share of the labels that has a run with a curve.

    Raises:
        UserError: a run's metrics.jsonl is damaged.
    """
    found = []
    for encoder in measured.encoders:
        for labels in measured.labels:
            panels = _panels(_series(measured, encoder, labels))
            if panels:
                name = f"figure3-{slug(encoder)}-{slug(labels)}"
                found.append(Figure(name=name, title=f"{encoder}, {labels} of the labels", panels=panels))
    return found


def _series(measured: Measured, encoder: str, labels: str) -> dict[bool, list[list[dict[str, float]]]]:
    """The log lines of the base's runs, those from scratch and those pretrained."""
    return {
        which: [
            read_lines(RunFolder(score.run).metrics)
            for score in measured.scores
            if (score.variant, score.encoder, score.labels, score.pretrained) == (BASE, encoder, labels, which)
        ]
        for which in (False, True)
    }


def _panels(runs: Mapping[bool, list[list[dict[str, float]]]]) -> tuple[Panel, ...]:
    panels = []
    for metric, title in METRICS.items():
        logged = {which: [_points(lines, metric) for lines in of_kind] for which, of_kind in runs.items()}
        bands = {which: found for which, series in logged.items() if (found := band(series)) is not None}
        if bands:
            panels.append(
                Panel(
                    title=title, draw=partial(_draw, metric=metric, bands=bands), description=_described(title, bands)
                )
            )
    return tuple(panels)


def _points(lines: list[dict[str, float]], metric: str) -> dict[int, float]:
    """Value by step, thinned where there are many: the same number of lines are thinned to the same steps."""
    return dict(thinned([(int(line["step"]), line[metric]) for line in lines if metric in line]))


def band(series: list[dict[int, float]]) -> Band | None:
    """Over those of ``series`` that have points at all; None where they have no step in common."""
    logged = [points for points in series if points]
    steps = tuple(sorted(set.intersection(*map(set, logged)))) if logged else ()
    if not steps:
        return None
    at = [[points[step] for points in logged] for step in steps]
    return Band(
        steps=steps,
        mean=tuple(sum(values) / len(values) for values in at),
        lowest=tuple(map(min, at)),
        highest=tuple(map(max, at)),
        seeds=len(logged),
    )


def _draw(axes: Axes, colours: Mapping[str, str], *, metric: str, bands: Mapping[bool, Band]) -> None:
    for which, found in bands.items():
        colour = colours[COLOURS[which]]
        axes.fill_between(found.steps, found.lowest, found.highest, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            found.steps, found.mean, color=colour, linewidth=1.8, linestyle=LINES[which], label=WORDS[which],
            marker="o" if len(found.steps) <= _FEW else "", markersize=3.5,
        )  # fmt: skip
    drawing.furnish(axes, colours, "step", drawing.percent if metric == "test_accuracy" else drawing.short)
    drawing.against_steps(axes)


def _described(title: str, bands: Mapping[bool, Band]) -> str:
    told = [
        f"{WORDS[which]} {found.mean[-1]:.4g} ({found.lowest[-1]:.4g} to {found.highest[-1]:.4g}, {found.seeds} seeds)"
        for which, found in bands.items()
    ]
    return f"{title} against the step. At the last step: {'; '.join(told)}."
