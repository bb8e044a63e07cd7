"""The ablations' tables: what each variant learned in pretraining, and what that is worth after finetuning.

The control, the recipe with ``pooler="none"``, has a row wherever variants are compared, also where it is missing: an
accuracy says nothing about context without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastselfie.protocol.cells import (
    COUNT,
    ENCODER,
    LABELS,
    P_VALUE,
    PAIRED,
    RANGED,
    SHARE,
    SPREAD,
    VARIANT,
    Column,
    Failed,
    Grid,
    Line,
    Ranged,
)
from fastselfie.protocol.footnotes import Footnotes
from fastselfie.protocol.gains import Paired, accuracies, gain, holm, paired, spread
from fastselfie.protocol.measured import BASE, CONTROL, Measured
from fastselfie.protocol.tables import IN_PERCENT

CONTROL_NAME = "control (pooler none)"


def pretext_table(measured: Measured) -> Grid:
    """Every variant's pretraining on images held out of it: accuracy, with another image's summary, and the gap."""
    lines, footnotes = [], Footnotes(measured)
    for variant in _variants(measured):
        failed = footnotes.cell("pretrain", variant=variant)
        runs = [run for run in measured.pretrainings if run.variant == variant]
        for run in runs:
            gap = None if run.context_gap is None else Ranged(value=run.context_gap, interval=run.gap_interval)
            name = _named(variant) + (f": {run.run.name}" if len(runs) > 1 else "")  # what was tuned, as in the folder
            lines.append(Line(cells=(name, run.steps, run.held_out_accuracy, run.accuracy_shuffled, gap)))
        if not runs:
            name = f"{_named(variant)}: {failed or _missing(measured, variant)}"
            lines.append(Line(cells=(name, failed, failed, failed, failed)))
    columns = (
        VARIANT,
        Column(name="steps", heading="steps", kind=COUNT),
        Column(name="held_out_accuracy", heading="held-out accuracy", kind=SHARE),
        Column(name="accuracy_shuffled", heading="with another image's summary", kind=SHARE),
        Column(name="context_gap", heading="context gap, 95% interval", kind=RANGED),
    )
    caption = (
        "Ablations, pretraining. How many masked patches of held-out images are put in their place, in %, and the"
        " points of that which need the rest of the image. The interval is over those images."
    )
    there = any(run.variant == CONTROL for run in measured.pretrainings)
    by_construction = "The control has no summary, so another image's changes nothing: its gap is 0 by construction."
    notes = (by_construction,) if there else _without_control(there)
    notes = (*notes, *footnotes.notes())
    return Grid(name="ablation-pretraining", caption=caption, columns=columns, lines=tuple(lines), notes=notes)


def accuracy_table(measured: Measured) -> Grid | None:
    """Every variant after finetuning, held against scratch and against the base, by encoder and labels.

    Only encoders and labels that a variant beside the base has a finished run of, or one that failed; None without any.
    """
    rows: list[tuple[Any, ...]] = []
    footnotes = Footnotes(measured)
    for encoder in measured.encoders:
        for labels in measured.labels:
            rows += _rows(measured, encoder, labels, footnotes)
    if not rows:
        return None
    adjusted = _adjusted([cells[-1] for cells in rows])
    lines = tuple(
        Line(cells=(*cells, p), first=index > 0 and cells[1:3] != rows[index - 1][1:3])
        for index, (cells, p) in enumerate(zip(rows, adjusted, strict=True))
    )
    columns = (
        VARIANT,
        ENCODER,
        LABELS,
        Column(name="accuracy", heading="test accuracy", kind=SPREAD),
        Column(name="gain", heading="gain over supervised, 95% interval", kind=PAIRED),
        Column(name="difference", heading="difference from base, 95% interval", kind=PAIRED),
        Column(name="p_holm", heading="p, Holm", kind=P_VALUE),
    )
    caption = f"Ablations, finetuning. Test accuracy {IN_PERCENT}; differences in points, paired by seed."
    notes = (*_notes(measured, adjusted), *footnotes.notes())
    return Grid(name="ablation-finetuning", caption=caption, columns=columns, lines=lines, notes=notes)


def _rows(measured: Measured, encoder: str, labels: str, footnotes: Footnotes) -> list[tuple[Any, ...]]:
    """The base, the control, run or not, and what other variants have: cells up to the difference from the base."""
    of = {"encoder": encoder, "labels": labels}
    found = {variant: accuracies(measured, variant=variant, pretrained=True, **of) for variant in _variants(measured)}
    others = [variant for variant in found if variant != BASE]
    if not any(found[variant] or _failed(measured, variant, **of) for variant in others):
        return []
    rows: list[tuple[Any, ...]] = []
    no_base = footnotes.cell("finetune", variant=BASE, pretrained=True, **of)
    no_gain = {variant: footnotes.cell("finetune", variant=variant, pretrained=False, **of) for variant in found}
    for variant, by_seed in found.items():
        failed = footnotes.cell("finetune", variant=variant, pretrained=True, **of)
        if by_seed or failed or variant in (BASE, CONTROL):
            same = variant != BASE and bool(by_seed) and _runs(measured, variant, **of) == _runs(measured, BASE, **of)
            remark = "" if by_seed else f": {failed or _missing(measured, variant)}"
            name = _named(variant) + (": the base itself" if same else remark)
            gained = gain(measured, variant=variant, **of) or failed or no_gain[variant] or no_gain[BASE]
            difference = None if variant == BASE or same else paired(by_seed, found[BASE]) or failed or no_base
            rows.append((name, encoder, labels, spread(by_seed.values()) or failed, gained, difference))
    return rows


def _failed(measured: Measured, variant: str, encoder: str, labels: str) -> bool:
    kind = "finetune", variant, encoder, labels
    return any((each.stage, each.variant, each.encoder, each.labels) == kind for each in measured.missing)


def _runs(measured: Measured, variant: str, encoder: str, labels: str) -> set[Path]:
    """Folders of a variant's pretrained runs: the base's where it asks for what the base has already."""
    kind = variant, encoder, labels
    return {s.run for s in measured.scores if s.pretrained and (s.variant, s.encoder, s.labels) == kind}


def _notes(measured: Measured, adjusted: list[float | None]) -> tuple[str, ...]:
    compared = sum(p is not None for p in adjusted)
    there = {score.variant for score in measured.scores}
    failed = {each.variant for each in measured.missing}
    without = [_named(variant) for variant in measured.variants if variant not in there | failed]
    return (
        *([f"p: paired t-test against the base, adjusted by Holm's method for the {compared} differences here."]
          if compared else []),
        *([f"No finished run yet: {', '.join(without)}."] if without else []),
        *_without_control(CONTROL in there),
    )  # fmt: skip


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


def _adjusted(found: list[Paired | Failed | None]) -> list[float | None]:
    """Holm's p of those differences that have one."""
    p_values = {index: each.p for index, each in enumerate(found) if isinstance(each, Paired) and each.p is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [adjusted.get(index) for index in range(len(found))]
