"""The ablations' tables: what each variant learned in pretraining, and what that is worth after finetuning.

The control, the recipe with ``pooler="none"``, has a row wherever variants are compared, also where it is missing: an
accuracy says nothing about context without it.
"""

from __future__ import annotations

from fastselfie.protocol.cells import COUNT, P_VALUE, PAIRED, RANGED, SHARE, SPREAD, TEXT, Column, Grid, Line, Ranged
from fastselfie.protocol.gains import Paired, accuracies, difference_from_base, gain, holm, spread
from fastselfie.protocol.measured import BASE, CONTROL, Measured
from fastselfie.protocol.tables import IN_PERCENT

CONTROL_NAME = "control (pooler none)"


def pretext_table(measured: Measured) -> Grid:
    """Every variant's pretraining on images held out of it: accuracy, with another image's summary, and the gap."""
    lines = []
    for variant in _variants(measured):
        runs = [run for run in measured.pretrainings if run.variant == variant]
        for run in runs:
            gap = None if run.context_gap is None else Ranged(value=run.context_gap, interval=run.gap_interval)
            cells = _named(variant), run.steps, run.held_out_accuracy, run.accuracy_shuffled, gap
            lines.append(Line(cells=cells))
        if not runs:
            lines.append(Line(cells=(f"{_named(variant)}: {_missing(measured, variant)}", None, None, None, None)))
    columns = (
        Column(name="variant", heading="variant", kind=TEXT),
        Column(name="steps", heading="steps", kind=COUNT),
        Column(name="held_out_accuracy", heading="held-out accuracy", kind=SHARE),
        Column(name="accuracy_shuffled", heading="with another image's summary", kind=SHARE),
        Column(name="context_gap", heading="context gap, 95% interval", kind=RANGED),
    )
    caption = (
        "Ablations, pretraining. How many masked patches of held-out images are put in their place, in %, and the"
        " points of that which need the rest of the image. The interval is over those images."
    )
    notes = _without_control(any(run.variant == CONTROL for run in measured.pretrainings))
    return Grid(name="ablation-pretraining", caption=caption, columns=columns, lines=tuple(lines), notes=notes)


def accuracy_table(measured: Measured) -> Grid:
    """Every variant after finetuning, held against scratch and against the base, by encoder and labels."""
    rows: list[tuple[tuple[object, ...], Paired | None]] = []
    for encoder in measured.encoders:
        for labels in measured.labels:
            for variant in _variants(measured):
                found = accuracies(measured, variant=variant, encoder=encoder, labels=labels, pretrained=True)
                name = _named(variant) if found else f"{_named(variant)}: {_missing(measured, variant)}"
                gained = gain(measured, variant=variant, encoder=encoder, labels=labels)
                difference = (
                    difference_from_base(measured, variant=variant, encoder=encoder, labels=labels)
                    if variant != BASE
                    else None
                )
                rows.append(((encoder, labels, name, spread(found.values()), gained, difference), difference))
    adjusted = _adjusted([difference for _, difference in rows])
    groups = [cells[:2] for cells, _ in rows]
    lines = tuple(
        Line(cells=(*cells, p), first=index > 0 and groups[index] != groups[index - 1])
        for index, ((cells, _), p) in enumerate(zip(rows, adjusted, strict=True))
    )
    columns = (
        Column(name="encoder", heading="encoder", kind=TEXT),
        Column(name="labels", heading="labels", kind=TEXT),
        Column(name="variant", heading="variant", kind=TEXT),
        Column(name="accuracy", heading="test accuracy", kind=SPREAD),
        Column(name="gain", heading="gain over supervised, 95% interval", kind=PAIRED),
        Column(name="difference", heading="difference from base, 95% interval", kind=PAIRED),
        Column(name="p_holm", heading="p, Holm", kind=P_VALUE),
    )
    compared = sum(p is not None for p in adjusted)
    notes = _without_control(any(score.variant == CONTROL for score in measured.scores))
    if compared:
        what = f"p: paired t-test against the base, adjusted by Holm's method for the {compared} differences here."
        notes = (what, *notes)
    caption = f"Ablations, finetuning. Test accuracy {IN_PERCENT}; differences in points, paired by seed."
    return Grid(name="ablation-finetuning", caption=caption, columns=columns, lines=lines, notes=notes)


def _variants(measured: Measured) -> list[str]:
    """The base, the control, the others as asked."""
    return list(dict.fromkeys((BASE, CONTROL, *measured.variants)))


def _named(variant: str) -> str:
    return CONTROL_NAME if variant == CONTROL else variant


def _missing(measured: Measured, variant: str) -> str:
    return "unfinished" if variant in measured.variants else "not run"


def _without_control(there: bool) -> tuple[str, ...]:
    what = "The control, pooler none, is missing: how much of these accuracies needs context cannot be told from them."
    return () if there else (what,)


def _adjusted(found: list[Paired | None]) -> list[float | None]:
    """Holm's p of those differences that have one."""
    p_values = {index: each.p for index, each in enumerate(found) if each is not None and each.p is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [adjusted.get(index) for index in range(len(found))]
