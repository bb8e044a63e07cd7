"""Accuracy on frozen features against the step of pretraining: does longer pretraining make better features?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from matplotlib.axes import Axes

from fastselfie.protocol.measured import Measured
from fastselfie.protocol.panels import Figure, Panel
from fastselfie.report import drawing
from fastselfie.report.palette import colour_of, dashes_of

CLASSIFIERS = {"knn": "Weighted kNN", "linear": "Linear classifier"}
Probing = tuple[str, str]
"""A variant and the features of it that were probed."""
Curves = Mapping[Probing, list[tuple[int, float]]]
"""Step and accuracy."""


def figure(measured: Measured) -> Figure | None:
    """None where nothing was probed at several steps."""
    names = curve_names(measured)
    panels = []
    for classifier, title in CLASSIFIERS.items():
        curves = {key: points for key in names if len(points := _points(measured, classifier, key)) > 1}
        if curves:
            told = "; ".join(f"{names[key]}: {points[-1][1]:.1%}" for key, points in curves.items())
            fresh = {key: value for key in names for _, value in _points(measured, classifier, key, trained=False)}
            panels.append(
                Panel(
                    title=title,
                    draw=partial(_draw, curves=curves, fresh=fresh, names=names),
                    description=f"{title}: test accuracy against the step of pretraining. At the last step: {told}.",
                )
            )
    return Figure(name="probes", title="Against the step of pretraining", panels=tuple(panels)) if panels else None


def curve_names(measured: Measured) -> dict[Probing, str]:
    """What was probed, in the order of the curves' colours, and what a reader calls it."""
    keys = dict.fromkeys((probed.variant, probed.features) for probed in measured.probes if probed.trained)
    several = len({variant for variant, _ in keys}) > 1
    return {(variant, features): f"{variant}, {features}" if several else features for variant, features in keys}


def _points(measured: Measured, classifier: str, key: Probing, trained: bool = True) -> list[tuple[int, float]]:
    found = [each for each in measured.probes if (each.variant, each.features, each.trained) == (*key, trained)]
    values = {probed.step: getattr(probed, classifier) for probed in found}
    return sorted((step, value) for step, value in values.items() if value is not None)


def _draw(
    axes: Axes,
    colours: Mapping[str, str],
    *,
    curves: Curves,
    fresh: Mapping[Probing, float],
    names: Mapping[Probing, str],
) -> None:
    for index, (key, name) in enumerate(names.items()):
        if key in curves:
            steps, values = zip(*curves[key], strict=True)
            colour, dashes = colours[colour_of(index)], dashes_of(index)
            axes.plot(
                steps, values, color=colour, linewidth=1.8, linestyle=(0, dashes) if dashes else "-", marker="o",
                markersize=4, label=name,
            )  # fmt: skip
            if key in fresh:
                axes.axhline(fresh[key], color=colour, linewidth=1.2, linestyle=(0, (1, 2)))
    drawing.furnish(axes, colours, "step of pretraining", drawing.percent)
    drawing.against_steps(axes)
