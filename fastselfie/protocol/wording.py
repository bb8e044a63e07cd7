"""What the page says in words: what was run, what it came to, and what the intervals cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastselfie.protocol import paper
from fastselfie.protocol.cells import NONE, PAIRED, RANGED, Failed, Grid, interval, points
from fastselfie.protocol.gains import gain
from fastselfie.protocol.measured import BASE, Measured

_VERDICTS = {
    "gain": "a gain beyond noise",
    "loss": "a loss beyond noise",
    "within noise": "within noise",
    "one seed": "one seed, so no interval",
}


@dataclass(frozen=True, kw_only=True)
class Told:
    """The gain at one share of the labels: ``value`` in large type, the verdict, and what else there is to say."""

    labels: str
    value: str
    verdict: str
    beside: tuple[str, ...] = ()


def headlines(measured: Measured) -> dict[str, list[Told]]:
    """The gain at each share of the labels in plain words, by encoder."""
    return {encoder: [_told(measured, encoder, labels) for labels in measured.labels] for encoder in measured.encoders}


def _told(measured: Measured, encoder: str, labels: str) -> Told:
    found, printed = gain(measured, encoder=encoder, labels=labels), paper.table_1(measured, labels, encoder)
    theirs = (f"paper: {points(printed.gain)}",) if printed is not None else ()
    if found is None:
        failed = any((m.variant, m.encoder, m.labels) == (BASE, encoder, labels) for m in measured.missing)
        verdict = "no seed finished both with and without" + (": runs failed, see table 1" if failed else "")
        return Told(labels=labels, value=NONE, verdict=verdict, beside=theirs)
    beside = theirs
    if found.low is not None and found.high is not None:
        beside = (f"{interval(found.low, found.high)}, {found.n} seeds", *theirs)
    return Told(labels=labels, value=points(found.mean), verdict=_VERDICTS[found.verdict], beside=beside)


def progress(measured: Measured) -> str:
    """How many of the finetuning runs are done."""
    done = len(measured.scores)
    if done >= measured.asked:
        return f"all {measured.asked} finetuning runs are done"
    failed = sum(missing.stage == "finetune" for missing in measured.missing)
    why = f"; {failed} failed or need a run that did" if failed else ""
    return f"unfinished: {done} of {measured.asked} finetuning runs are done{why}"


def what_was_run(measured: Measured) -> list[tuple[str, str]]:
    """Names and values of what was asked for and how long it trained."""
    by_steps: dict[int, dict[str, None]] = {}
    for run in measured.pretrainings:
        by_steps.setdefault(run.steps, {})[run.variant] = None
    pretrained = [f"{steps:,} steps ({', '.join(variants)})" for steps, variants in by_steps.items()]
    classes = f"{measured.classes} classes, chance {1 / measured.classes:.1%}"
    return [
        ("recipe", measured.recipe), ("data", f"{measured.data}, {classes}"),
        ("labels", ", ".join(measured.labels)), ("encoders", ", ".join(measured.encoders)),
        ("seeds", ", ".join(map(str, measured.seeds))), ("variants", ", ".join(measured.variants)),
        ("pretraining", "; ".join(pretrained) or "none finished"), *measured.settings,
    ]  # fmt: skip


def scope(measured: Measured) -> str:
    """What the seeds vary, and what they leave alone."""
    subset = "and the labelled subset" if measured.vary_labels else "over one labelled subset"
    seed = f"A seed stands for the finetuning's fresh weights, order and crops, {subset}."
    if sum(run.variant == BASE for run in measured.pretrainings) > 1:
        return f"{seed} Several pretraining runs are behind the pretrained ones, and the intervals mix what both vary."
    return (
        f"{seed} All pretrained runs of a variant start from one pretraining run: the intervals do not cover how far"
        " another pretraining run would be from it."
    )


def intervals(grids: Sequence[Grid]) -> str:
    """How many intervals the tables show, and what that means."""
    number = sum(map(_intervals_of, grids))
    if not number:
        return "The tables show no interval: that takes two seeds."
    shown = f"The tables show {number} interval{'s' * (number > 1)}."
    return f"{shown} Each stands for itself: one in twenty misses its true value even where all assumptions hold."


def _intervals_of(grid: Grid) -> int:
    number = 0
    for index, column in enumerate(grid.columns):
        cells = [cell for line in grid.lines if not isinstance(cell := line.cells[index], Failed | None)]
        if column.kind is PAIRED:
            number += sum(cell.low is not None for cell in cells)
        elif column.kind is RANGED:
            number += sum(cell.interval is not None for cell in cells)
    return number
