"""Charts as SVG for the page, in its variable colours, and as PNG for a run's folder (matplotlib)."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fastselfie.config import RunConfig
from fastselfie.report.charts import EVALUATED, Chart, Quantity, chance_levels, points, quantities_of
from fastselfie.report.palette import LIGHT, colour_of, dashes_of
from fastselfie.report.runs import Run

# Inches. At 4.2 a point is about a CSS pixel on the narrowest phones, so the text there is as large as it says.
_ON_PAGE, _ON_DISK = (4.2, 2.8), (6.4, 4.2)
_LONGEST = 48  # letters of a run's name that fit into a title
_FEW = 60  # points up to which a measurement has its mark
_WIDTHS = {"first": 1.8, "second": 1.3, "faint": 1.0}
# Colours that stand for the page's variables until the SVG is written.
_STANDS_FOR = {name: f"#0b0c{number:02x}" for number, name in enumerate(LIGHT)}
_STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.linewidth": 0.8,
    "xtick.major.size": 3, "ytick.major.size": 0, "legend.frameon": False, "svg.fonttype": "none",
}  # fmt: skip


def svg(chart: Chart, runs: Sequence[Run[RunConfig]], identity: str) -> str:
    """An ``svg`` element of a chart, with colours ``var(--...)`` of the page.

    Args:
        identity: begins every id in it; another for every chart of a page.
    """
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": identity}], after_reset=True):
        figure = Figure(figsize=_ON_PAGE)
        axes = figure.add_axes((0.145, 0.185, 0.835, 0.785))
        for background in (figure.patch, axes.patch):
            background.set_visible(False)
        _draw(axes, chart, runs, _STANDS_FOR)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _inline(buffer.getvalue().decode(), identity, _described(chart, runs))


def png(chart: Chart, run: Run[RunConfig]) -> bytes:
    """A PNG file of a chart of one run alone, on white, with title, axis and legend."""
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font may lack a letter of a folder's name
        figure = Figure(figsize=_ON_DISK, dpi=150, layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, chart, [run], LIGHT)
        name = run.name if len(run.name) <= _LONGEST else f"…{run.name[-_LONGEST:]}"
        # A dollar sign in a folder's name is no formula.
        axes.set_title(f"{chart.title}: {name}", loc="left", color=LIGHT["ink"], parse_math=False)
        if len(quantities_of(chart, [run])) > 1:
            axes.legend(labelcolor=LIGHT["ink"])
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, chart: Chart, runs: Sequence[Run[RunConfig]], colours: dict[str, str]) -> None:
    for index, run in enumerate(runs):
        for quantity in quantities_of(chart, [run]):
            _draw_curve(axes, run, quantity, colours[colour_of(index)], dashes_of(index), colours["card"])
    if chart.name == "accuracy":
        for level in chance_levels(runs):
            axes.axhline(level, color=colours["muted"], linewidth=1, linestyle=(0, (1, 2)), label="chance")
    if chart.signed:
        axes.axhline(0, color=colours["muted"], linewidth=1, zorder=1)
    for bound in (chart.lowest, chart.highest):
        if bound is not None:
            axes.update_datalim([(axes.dataLim.x0, bound)])
            axes.autoscale_view(scalex=False)
    if chart.lowest is not None:
        axes.set_ylim(bottom=chart.lowest)
    _furnish(axes, chart, colours)


def _draw_curve(
    axes: Axes, run: Run[RunConfig], quantity: Quantity, colour: str, dashes: tuple[float, ...], inside: str
) -> None:
    """One quantity of one run. Quantities differ by weight and marks, so that dashes are free to tell runs apart."""
    steps, values = zip(*points(run, quantity), strict=True)
    marked = len(steps) == 1 or (quantity.metric in EVALUATED and len(steps) <= _FEW)
    axes.plot(
        steps, values, label=quantity.label, color=colour, alpha=0.55 if quantity.role == "faint" else 1,
        linewidth=_WIDTHS[quantity.role], linestyle=(0, dashes) if dashes else "-", solid_joinstyle="round",
        marker="o" if marked else "", markersize=4, markeredgewidth=1.2,
        markerfacecolor=inside if quantity.role == "second" else colour,
        zorder=2 if quantity.role == "faint" else 3,
    )  # fmt: skip


def _furnish(axes: Axes, chart: Chart, colours: dict[str, str]) -> None:
    """Axes, grid and numbers."""
    axes.grid(axis="y", color=colours["rule"], linewidth=0.8)
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.set_xlabel("step", color=colours["muted"], labelpad=2)
    axes.tick_params(colors=colours["muted"])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_points if chart.signed else _percent if chart.share else _short))


def _short(value: float, _: object = None) -> str:
    """A number on an axis: 12k for 12,000."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:.6g}"


def _percent(share: float, _: object = None) -> str:
    """A share on an axis."""
    return f"{100 * share:.6g}%"


def _points(difference: float, _: object = None) -> str:
    """A difference of shares on an axis, in percentage points."""
    return f"{100 * difference:+.6g}".replace("-", "−") if difference else "0"


def _described(chart: Chart, runs: Sequence[Run[RunConfig]]) -> str:
    """What somebody who does not see the chart is told: the last value of every curve."""
    told = []
    for run in runs:
        last = [(quantity.label, *run.series(quantity.metric)[-1]) for quantity in quantities_of(chart, [run])]
        told += [f"{run.name}: {label} {value:.4g} at step {step:,}" for label, step, value in last]
    return f"{chart.title} against the step. {'; '.join(told)}."


def _inline(text: str, identity: str, description: str) -> str:
    """An SVG document as an element inside a page: no namespaces, only ids that are used, variable colours."""
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"#([\w-]+)", " ".join(value for e in root.iter() for value in e.attrib.values())))
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:  # a style would be the page's too
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({name: _attribute(name, value, identity) for name, value in attributes.items()})
        element.text, element.tail = (element.text or "").strip() or None, None
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": description})
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, identity: str) -> str:
    """An attribute's value inside a page."""
    if name == "id":
        return f"{identity}-{value}"
    if name == "style":
        value = re.sub(r"font-family: [^;]*; ", "", value)  # the text takes the page's
        for colour, stand_in in _STANDS_FOR.items():
            value = value.replace(stand_in, f"var(--{colour})")
        return value
    if name in ("d", "x", "y", "transform"):  # a hundredth of a pixel is enough
        value = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
        return " ".join(value.split())
    return re.sub(r"^(url\()?#", rf"\g<0>{identity}-", value)
