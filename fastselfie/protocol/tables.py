"""The papers' Tables 1 and 2 of a protocol, and its probes. The ablations' are in `ablations`."""

from __future__ import annotations

from collections.abc import Sequence

from fastselfie.config import ENCODERS, RESNET36_ATTENTION, RESNET50
from fastselfie.protocol import paper
from fastselfie.protocol.cells import (
    COUNT,
    ENCODER,
    LABELS,
    PAIRED,
    PAIRS,
    POINTS,
    SHARE,
    SPREAD,
    TEXT,
    VARIANT,
    VERDICT,
    Column,
    Failed,
    Grid,
    Line,
)
from fastselfie.protocol.footnotes import Footnotes
from fastselfie.protocol.gains import Paired, accuracies, gain, paired, spread
from fastselfie.protocol.measured import BASE, Measured, Probed

IN_PERCENT = "in %, mean ± sample standard deviation over seeds"
NO_PAPER = "The paper prints no number for these rows."


def table_1(measured: Measured) -> Grid:
    """The paper's Table 1: with and without pretraining by share of the labels, ours first, for every encoder."""
    lines: list[Line] = []
    gains, footnotes = [], Footnotes(measured)
    for encoder in measured.encoders:
        for labels in measured.labels:
            of = {"encoder": encoder, "labels": labels}
            failed = [footnotes.cell("finetune", variant=BASE, pretrained=which, **of) for which in (False, True)]
            scratch, pretrained = (
                spread(accuracies(measured, pretrained=which, **of).values()) or failed[which]
                for which in (False, True)
            )
            found, theirs = gain(measured, **of), paper.table_1(measured, labels, encoder)
            gains.append(found)
            cells = (
                encoder, labels, scratch, pretrained, *_compared(found, failed[False] or failed[True]),
                theirs and theirs.first, paper.accuracy(measured, labels, encoder, True), theirs and theirs.gain,
            )  # fmt: skip
            lines.append(Line(cells=cells, first=bool(lines) and labels == measured.labels[0]))
    columns = (
        ENCODER, LABELS,
        Column(name="supervised", heading="supervised", kind=SPREAD),
        Column(name="pretrained", heading="pretrained", kind=SPREAD),
        Column(name="gain", heading="gain, 95% interval", kind=PAIRED),
        VERDICT, PAIRS, *_paper_columns(supervised="supervised", pretrained="pretrained"),
    )  # fmt: skip
    caption = f"Table 1. Test accuracy {IN_PERCENT}; gain in points, paired by seed."
    notes = (*_notes(gains), *footnotes.notes())
    return _beside_paper(Grid(name="table1", caption=caption, columns=columns, lines=tuple(lines), notes=notes))


def table_2(measured: Measured) -> Grid | None:
    """The paper's Table 2: both encoders after pretraining. None where only one of them was asked for."""
    if not set(ENCODERS) <= set(measured.encoders):
        return None
    lines, differences, footnotes = [], [], Footnotes(measured)
    for labels in measured.labels:
        failed = {
            encoder: footnotes.cell("finetune", variant=BASE, encoder=encoder, labels=labels, pretrained=True)
            for encoder in ENCODERS
        }
        resnet50, attention = (
            accuracies(measured, encoder=encoder, labels=labels, pretrained=True) for encoder in ENCODERS
        )
        found, theirs = paired(attention, resnet50), paper.table_2(measured, labels)
        differences.append(found)
        cells = (
            labels, spread(resnet50.values()) or failed[RESNET50],
            spread(attention.values()) or failed[RESNET36_ATTENTION],
            *_compared(found, failed[RESNET50] or failed[RESNET36_ATTENTION]),
            theirs and theirs.first, theirs and theirs.second, theirs and theirs.gain,
        )  # fmt: skip
        lines.append(Line(cells=cells))
    columns = (
        LABELS,
        Column(name="resnet50", heading="ResNet-50", kind=SPREAD),
        Column(name="attention", heading="ResNet-36 + attention pooling", kind=SPREAD),
        Column(name="difference", heading="difference, 95% interval", kind=PAIRED),
        VERDICT, PAIRS, *_paper_columns(resnet50="ResNet-50", attention="attention pooling"),
    )  # fmt: skip
    caption = f"Table 2. Test accuracy of both encoders after pretraining, {IN_PERCENT}; difference in points."
    notes = (*_notes(differences), *footnotes.notes())
    return _beside_paper(Grid(name="table2", caption=caption, columns=columns, lines=tuple(lines), notes=notes))


def probe_table(measured: Measured) -> Grid | None:
    """Classifiers on frozen features at the last probed step of each variant, an untrained network's beside them."""
    footnotes = Footnotes(measured)
    failed = {variant: footnotes.cell("probe", variant=variant) for variant in measured.variants}
    if not measured.probes and not any(failed.values()):
        return None
    fresh = {(probed.variant, probed.features): probed for probed in measured.probes if not probed.trained}
    lines: list[Line] = []
    for probed in latest(measured.probes):
        bare = fresh.get((probed.variant, probed.features))
        cells = (
            probed.variant, probed.step, probed.features,
            probed.linear, bare and bare.linear, probed.knn, bare and bare.knn,
        )  # fmt: skip
        lines.append(Line(cells=cells, first=bool(lines) and lines[-1].cells[0] != probed.variant))
    there = {line.cells[0] for line in lines}
    for variant, cell in failed.items():
        if cell is not None and variant not in there:
            lines.append(Line(cells=(variant, None, cell, cell, None, cell, None), first=bool(lines)))
    columns = (
        VARIANT,
        Column(name="step", heading="pretraining step", kind=COUNT),
        Column(name="features", heading="features", kind=TEXT),
        Column(name="linear", heading="linear", kind=SHARE),
        Column(name="linear_fresh", heading="linear, untrained", kind=SHARE),
        Column(name="knn", heading="kNN", kind=SHARE),
        Column(name="knn_fresh", heading="kNN, untrained", kind=SHARE),
    )
    caption = "Probes. Test accuracy in % of classifiers on frozen features, beside those of an untrained network."
    notes = () if fresh else ("No untrained network was probed: what the features owe to training is not known.",)
    notes = (*notes, *footnotes.notes())
    return Grid(name="probes", caption=caption, columns=columns, lines=tuple(lines), notes=notes)


def latest(probes: Sequence[Probed]) -> list[Probed]:
    """Those of trained networks at the last step that each variant was probed at."""
    by_variant: dict[str, list[Probed]] = {}
    for probed in probes:
        if probed.trained:
            by_variant.setdefault(probed.variant, []).append(probed)
    last = {variant: max(probed.step for probed in group) for variant, group in by_variant.items()}
    return [probed for group in by_variant.values() for probed in group if probed.step == last[probed.variant]]


def _compared(found: Paired | None, failed: Failed | None) -> tuple[Paired | Failed | None, str | Failed | None, int]:
    """Cells of a difference, its verdict and how many seeds it is of; ``failed`` where there is none."""
    return found or failed, found.verdict if found else failed, found.n if found else 0


def _paper_columns(**headings: str) -> tuple[Column, ...]:
    """The paper's two accuracies, a heading by name, and their difference."""
    accuracy = [
        Column(name=f"paper_{name}", heading=f"paper: {heading}", kind=SPREAD) for name, heading in headings.items()
    ]
    return (*accuracy, Column(name="paper_gain", heading="paper: gain", kind=POINTS))


def _beside_paper(grid: Grid) -> Grid:
    """Without the paper's three columns, and a note instead, where it has no number for any row."""
    if any(cell is not None for line in grid.lines for cell in line.cells[-3:]):
        return grid
    lines = tuple(Line(cells=line.cells[:-3], first=line.first) for line in grid.lines)
    notes = (*grid.notes, NO_PAPER)
    return Grid(name=grid.name, caption=grid.caption, columns=grid.columns[:-3], lines=lines, notes=notes)


def _notes(found: Sequence[Paired | None]) -> tuple[str, ...]:
    """What a reader of means and paired differences in one table must know."""
    left_out = sum(each.unpaired for each in found if each is not None)
    if not left_out:
        return ()
    seeds = "1 seed is" if left_out == 1 else f"{left_out} seeds are"
    return (f"{seeds} left out of the paired differences, not of the means: one of the two runs is unfinished.",)
