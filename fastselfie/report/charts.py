"""Which charts a report has, and the points in them. How they are drawn is in `curves`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastselfie.config import PretrainConfig, RunConfig
from fastselfie.report.runs import Run

EVALUATED = frozenset(
    {
        *("held_out_accuracy", "accuracy_shuffled", "context_gap", "test_accuracy", "test_loss"),
        *("knn_accuracy", "knn_accuracy_pooler"),
    }
)
"""Metrics that are measured now and then, on images that the run does not train on."""
MOST_POINTS = 240
"""A curve of more lines than this is averaged over neighbours: a chart is that many points wide."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One curve of every run in a chart.

    Attributes:
        metric: its name in metrics.jsonl. label: what a reader calls it. role: how much it stands out.
    """

    metric: str
    label: str
    role: Literal["first", "second", "faint"] = "first"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart against the step.

    Attributes:
        name: of its PNG file. title: its heading. quantities: its curves. share: values are shares, shown in percent.
        lowest: a value that the vertical axis must show. highest: one more, so that small values look small.
        signed: values are differences, and zero is marked.
    """

    name: str
    title: str
    quantities: tuple[Quantity, ...]
    share: bool = False
    lowest: float | None = None
    highest: float | None = None
    signed: bool = False


CHARTS = (
    Chart(
        name="loss",
        title="Loss",
        quantities=(
            Quantity(metric="loss", label="Cross entropy in training"),
            Quantity(metric="test_loss", label="on test images", role="second"),
        ),
    ),
    Chart(
        name="accuracy",
        title="Accuracy",
        quantities=(
            Quantity(metric="accuracy", label="in training", role="faint"),
            Quantity(metric="accuracy_shuffled", label="held out, with another image's summary", role="second"),
            Quantity(metric="held_out_accuracy", label="held out"),
            Quantity(metric="test_accuracy", label="test"),
        ),
        share=True,
    ),
    Chart(
        name="context_gap",
        title="Context gap",
        quantities=(
            Quantity(
                metric="context_gap", label="Held-out accuracy minus that with another image's summary, in points"
            ),
        ),
        share=True,
        signed=True,
    ),
    Chart(
        name="knn_accuracy",
        title="Nearest neighbours on frozen features",
        quantities=(
            Quantity(metric="knn_accuracy", label="of the trunk on whole images"),
            Quantity(metric="knn_accuracy_pooler", label="of the pooler's summary", role="second"),
        ),
        share=True,
    ),
    Chart(
        name="learning_rate",
        title="Learning rate",
        quantities=(Quantity(metric="lr", label="Warm-up, then a cosine to 0"),),
        lowest=0,
    ),
    Chart(
        name="throughput",
        title="Images per second",
        quantities=(Quantity(metric="images_per_second", label="Over all processes"),),
        lowest=0,
    ),
    Chart(
        name="data_wait",
        title="Data wait",
        quantities=(Quantity(metric="data_wait", label="Share of the time spent waiting for data"),),
        share=True,
        lowest=0,
        highest=0.05,
    ),
)


def quantities_of(chart: Chart, runs: Sequence[Run[RunConfig]]) -> list[Quantity]:
    """Those of a chart's quantities that at least one of ``runs`` has logged."""
    return [quantity for quantity in chart.quantities if any(run.series(quantity.metric) for run in runs)]


def curve_points(run: Run[RunConfig], quantity: Quantity) -> list[tuple[int, float]]:
    """Step and value of every point of a curve: the logged ones, or means over neighbours of many.

    A line of training figures is the mean over the steps since the line before it, so the mean of neighbours at the
    last one's step is again one.
    """
    return thinned(run.series(quantity.metric))


def thinned(logged: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MOST_POINTS` points of step and value, each the mean of neighbours at the last one's step."""
    size = -(-len(logged) // MOST_POINTS) or 1
    groups = [logged[start : start + size] for start in range(0, len(logged), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def chance_levels(runs: Sequence[Run[RunConfig]]) -> list[float]:
    """The accuracies of guessing in the pretraining runs among ``runs``, each once, ascending."""
    return sorted({chance(run.config) for run in runs if isinstance(run.config, PretrainConfig)})


def chance(config: PretrainConfig) -> float:
    """The accuracy of guessing: one of the m masked patches of an image."""
    return 1 / (config.patches - config.visible)
