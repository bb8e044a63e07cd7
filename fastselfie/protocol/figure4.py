"""The paper's Figure 4: test accuracy, and what pretraining gains, against the share of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from fastselfie.config import label_share
from fastselfie.protocol import paper
from fastselfie.protocol.cells import mean_and_sd, with_interval
from fastselfie.protocol.gains import Paired, Spread, accuracies, gain, spread
from fastselfie.protocol.measured import Measured
from fastselfie.protocol.panels import COLOURS, LINES, MARKS, WORDS, Figure, Panel, slug
from fastselfie.report import drawing

BESIDE = 0.022
"""How far the paper's points stand beside ours, as a part of the axis: supervised left, pretrained right. Ours stand at
their share, or a curve that is moved would seem to be above or below the other."""
Points = Mapping[bool, Mapping[str, Spread]]
"""Pretrained or not, labels: the accuracy."""


def figures(measured: Measured) -> list[Figure]:
    """A figure for each encoder that has a finished run."""
    return [found for encoder in measured.encoders if (found := _figure(measured, encoder)) is not None]


def _figure(measured: Measured, encoder: str) -> Figure | None:
    ours: dict[bool, dict[str, Spread]] = {False: {}, True: {}}
    theirs: dict[bool, dict[str, Spread]] = {False: {}, True: {}}
    gains: dict[str, Paired] = {}
    their_gains: dict[str, float] = {}
    for labels in measured.labels:
        for which in (False, True):
            found = spread(accuracies(measured, encoder=encoder, labels=labels, pretrained=which).values())
            printed = paper.accuracy(measured, labels, encoder, which)
            ours[which] |= {labels: found} if found is not None else {}
            theirs[which] |= {labels: printed} if printed is not None else {}
        each, row = gain(measured, encoder=encoder, labels=labels), paper.table_1(measured, labels, encoder)
        gains |= {labels: each} if each is not None else {}
        their_gains |= {labels: row.gain} if row is not None else {}
    if not any(ours.values()):
        return None
    accuracy = Panel(
        title="Test accuracy",
        draw=partial(_draw_accuracy, asked=measured.labels, ours=ours, theirs=theirs),
        description=_described(ours),
    )
    told = "; ".join(f"{labels}: {with_interval(each)}" for labels, each in gains.items())
    gained = Panel(
        title="Gain from pretraining, points",
        draw=partial(_draw_gain, asked=measured.labels, ours=gains, theirs=their_gains),
        description=f"Gain in points, with its 95% interval, against the share of the labels. {told}.",
    )
    return Figure(
        name=f"figure4-{slug(encoder)}",
        title=encoder,
        panels=(accuracy, gained) if gains else (accuracy,),
        paper=any(theirs.values()),
    )


def _described(ours: Points) -> str:
    told = [f"{labels} {WORDS[which]}: {mean_and_sd(found)}" for which in ours for labels, found in ours[which].items()]
    return f"Test accuracy in % against the share of the labels. {'; '.join(told)}."


def _draw_accuracy(
    axes: Axes, colours: Mapping[str, str], *, asked: tuple[str, ...], ours: Points, theirs: Points
) -> None:
    for side, which in ((-1, False), (1, True)):
        colour = colours[COLOURS[which]]
        for points, place, is_ours in ((ours[which], 0, True), (theirs[which], side, False)):
            if points:
                labels = sorted(points, key=label_share)
                axes.errorbar(
                    [_beside(label, place, asked) for label in labels], [points[label].mean for label in labels],
                    [points[label].sd or 0 for label in labels], color=colour, elinewidth=1.2, capsize=2.5,
                    linestyle=LINES[which] if is_ours else "", linewidth=1.5, marker=MARKS[which], markersize=5,
                    markerfacecolor=colour if is_ours else colours["card"],
                    label=WORDS[which] if is_ours else f"paper, {WORDS[which]}",
                )  # fmt: skip
    drawing.furnish(axes, colours, "share of the labels", drawing.percent)
    _against_labels(axes, asked)


def _draw_gain(
    axes: Axes,
    colours: Mapping[str, str],
    *,
    asked: tuple[str, ...],
    ours: Mapping[str, Paired],
    theirs: Mapping[str, float],
) -> None:
    colour = colours[COLOURS[True]]
    axes.axhline(0, color=colours["muted"], linewidth=1, zorder=1)
    labels = sorted(ours, key=label_share)
    half = [0.0 if ours[label].low is None else ours[label].mean - (ours[label].low or 0) for label in labels]
    axes.errorbar(
        [label_share(label) for label in labels], [ours[label].mean for label in labels], half,
        color=colour, elinewidth=1.2, capsize=2.5, linestyle="-", linewidth=1.5, marker="o", markersize=5,
        label="gain, 95% interval",
    )  # fmt: skip
    if theirs:
        axes.plot(
            [_beside(label, 1, asked) for label in theirs], list(theirs.values()), color=colour, linestyle="",
            marker="o", markersize=5, markerfacecolor=colours["card"], label="paper",
        )  # fmt: skip
    drawing.furnish(axes, colours, "share of the labels", drawing.points)
    _against_labels(axes, asked)


def _decades(asked: tuple[str, ...]) -> tuple[float, float]:
    """The ends of the axis, as logarithms: the shares asked for, and room beside them."""
    shares = [float(np.log10(label_share(labels))) for labels in asked]
    room = max(0.08 * (max(shares) - min(shares)), 0.05)
    return min(shares) - room, max(shares) + room


def _beside(labels: str, place: int, asked: tuple[str, ...]) -> float:
    """The share, moved by ``place`` times `BESIDE`."""
    low, high = _decades(asked)
    return label_share(labels) * float(10 ** (place * BESIDE * (high - low)))


def _against_labels(axes: Axes, asked: tuple[str, ...]) -> None:
    """A logarithmic axis with the shares asked for on it."""
    low, high = _decades(asked)
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_major_locator(FixedLocator([label_share(labels) for labels in asked]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(asked)
