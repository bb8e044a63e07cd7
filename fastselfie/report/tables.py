"""The figures of runs as text: headlines and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from fastselfie.config import PretrainConfig, RunConfig, without_context
from fastselfie.report.charts import chance
from fastselfie.report.runs import Run

NONE = "–"
# Settings that change no figure of the page, and those that its tables have anyway.
_UNTOLD = {"out", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "pretrained", "scratch"}


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A figure in large type: its name, its value, and what to read it against."""

    name: str
    value: str
    beside: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: a cell for each heading. ``first`` of a group, and so set off from the row above it."""

    cells: tuple[str, ...]
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts. ``numbers`` are the headings of the columns that are set flush right;
    ``row_header`` is that of the column whose cells name their rows."""

    caption: str
    headings: tuple[str, ...]
    numbers: frozenset[str]
    rows: tuple[Row, ...]
    row_header: str = "run"


def percent(share: float | None) -> str:
    """A share in percent, with one decimal."""
    return NONE if share is None else f"{share:.1%}"


def difference(shares: float | None) -> str:
    """A difference of two shares in percentage points, signed."""
    return NONE if shares is None else f"{_points(shares)}\N{NO-BREAK SPACE}points"


def _points(shares: float) -> str:
    points = round(100 * shares, 1)
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def number(value: float | None) -> str:
    """Three significant digits, or all of a whole number above them, with thousands separated."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def steps(run: Run[RunConfig]) -> str:
    """How far a run came."""
    if run.result is not None:
        return f"{run.step:,}"
    return f"{run.step:,} of {run.config.steps:,}, unfinished"


def headlines(run: Run[PretrainConfig]) -> list[Headline]:
    """What a pretraining run came to, in four figures. Accuracy never stands without the gap beside it."""
    beside = f"{percent(run.figure('accuracy_shuffled'))} with another image's summary"
    low, high = run.figure("context_gap_low"), run.figure("context_gap_high")
    if low is not None and high is not None:  # runs of earlier versions have none
        beside = f"95% {_points(low)} to {difference(high)}; {beside}"
    if flag := without_context(run.config.pooler, run.config.pooler_depth):
        beside = f"by construction, with {flag}"
    guessing = percent(chance(run.config))
    return [
        Headline(name="held-out accuracy", value=percent(run.figure("held_out_accuracy")), beside=f"chance {guessing}"),
        Headline(
            name="context gap",
            value=difference(run.figure("context_gap")),
            beside=beside,
        ),
        Headline(name="loss", value=number(run.figure("loss")), beside="in training, newest"),
        Headline(
            name="images/s",
            value=number(run.median("images_per_second")),
            beside=f"median; data wait {percent(run.median('data_wait'))}",
        ),
    ]


def pretraining_table(runs: Sequence[Run[PretrainConfig]]) -> Table:
    """Every pretraining run in a row."""
    headings = (
        "run", "held-out accuracy", "with another image's summary", "context gap", "chance", "loss", "steps",
        "images/s, median", "data wait, median",
    )  # fmt: skip
    rows = tuple(
        Row(
            cells=(
                run.name, percent(run.figure("held_out_accuracy")), percent(run.figure("accuracy_shuffled")),
                difference(run.figure("context_gap")), percent(chance(run.config)), number(run.figure("loss")),
                steps(run), number(run.median("images_per_second")), percent(run.median("data_wait")),
            )
        )
        for run in runs
    )  # fmt: skip
    return Table(
        caption="Pretraining runs. Accuracy says how many masked patches of held-out images are put in their place;"
        " the context gap, how much of that needs the rest of the image.",
        headings=headings,
        numbers=frozenset(headings[1:]),
        rows=rows,
    )


def differences(runs: Sequence[Run[RunConfig]]) -> Table | None:
    """The settings in which runs of one kind differ, a row each run; None where they do not."""
    settings = [dataclasses.asdict(run.config) for run in runs]
    # What finetuning starts from is in its table; pretraining has none.
    told = {"pretrained"} if isinstance(runs[0].config, PretrainConfig) else set()
    names = [name for name in settings[0] if name not in _UNTOLD - told and len({str(s[name]) for s in settings}) > 1]
    if not names:
        return None
    rows = tuple(
        Row(cells=(run.name, " · ".join(f"{name.replace('_', ' ')} {setting[name]}" for name in names)))
        for run, setting in zip(runs, settings, strict=True)
    )
    caption = "Settings in which the runs differ."
    return Table(caption=caption, headings=("run", "settings"), numbers=frozenset(), rows=rows)
