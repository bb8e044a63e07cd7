"""What the page says in words: what was run, what it came to, and what the intervals cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastselfie.protocol.cells import PAIRED, RANGED, Grid, interval, mean_and_sd, points
from fastselfie.protocol.gains import Paired, accuracies, gain, spread
from fastselfie.protocol.measured import BASE, Measured
from fastselfie.report.tables import Headline

_VERDICTS = {
    "gain": "a gain beyond the noise",
    "loss": "a loss beyond the noise",
    "within noise": "within the noise: no gain shown",
    "one seed": "one seed: no interval, nothing shown",
}


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The headlines of one encoder, one for each share of the labels."""

    encoder: str
    headlines: tuple[Headline, ...]


def headlines(measured: Measured) -> list[Gains]:
    """The gain at each share of the labels, for each encoder, in words."""
    found = []
    for encoder in measured.encoders:
        told = [_headline(measured, encoder, labels) for labels in measured.labels]
        found.append(Gains(encoder=encoder, headlines=tuple(told)))
    return found


def _headline(measured: Measured, encoder: str, labels: str) -> Headline:
    found, name = gain(measured, encoder=encoder, labels=labels), f"{labels} of the labels"
    if found is None:
        return Headline(name=name, value="–", beside="no seed is finished both with and without pretraining")
    from_to = " to ".join(
        mean_and_sd(each)
        for which in (False, True)
        if (each := spread(accuracies(measured, encoder=encoder, labels=labels, pretrained=which).values()))
    )
    return Headline(name=name, value=points(found.mean), beside=f"{_in_words(found)}. Accuracy {from_to} %")


def _in_words(found: Paired) -> str:
    verdict = _VERDICTS[found.verdict]
    if found.low is None or found.high is None:
        return verdict
    return f"{interval(found.low, found.high)} over {found.n} seeds, {verdict}"


def progress(measured: Measured) -> str:
    """How many of the finetuning runs are done."""
    done = len(measured.scores)
    if done >= measured.asked:
        return f"all {measured.asked} finetuning runs are done"
    return f"unfinished: {done} of {measured.asked} finetuning runs are done"


def what_was_run(measured: Measured) -> list[tuple[str, str]]:
    """Names and values of what was asked for and how long it trained."""
    pretrained = [f"{run.variant}: {run.steps:,} steps" for run in measured.pretrainings]
    classes = f"{measured.classes} classes, chance {1 / measured.classes:.1%}"
    return [
        ("recipe", measured.recipe), ("data", f"{measured.data}, {classes}"),
        ("labels", ", ".join(measured.labels)), ("encoders", ", ".join(measured.encoders)),
        ("seeds", ", ".join(map(str, measured.seeds))), ("variants", ", ".join(measured.variants)),
        ("pretraining", "; ".join(pretrained) or "none finished"), *measured.settings,
    ]  # fmt: skip


def scope(measured: Measured) -> str:
    """What the seeds vary, and what they leave alone."""
    seed = "A seed stands for the finetuning's fresh weights, order, crops and labelled subset."
    if sum(run.variant == BASE for run in measured.pretrainings) > 1:
        return f"{seed} Several pretraining runs are behind the pretrained ones, and the intervals mix what both vary."
    return (
        f"{seed} All pretrained runs of a variant start from one pretraining run: the intervals do not cover how far"
        " another pretraining run would be from it."
    )


def number_of_intervals(grids: Sequence[Grid]) -> int:
    """How many intervals the tables show."""
    number = 0
    for grid in grids:
        for index, column in enumerate(grid.columns):
            cells = [line.cells[index] for line in grid.lines if line.cells[index] is not None]
            if column.kind is PAIRED:
                number += sum(cell.low is not None for cell in cells)
            elif column.kind is RANGED:
                number += sum(cell.interval is not None for cell in cells)
    return number
