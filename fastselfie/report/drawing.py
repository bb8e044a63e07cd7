"""What every chart has in common: SVG for a page in its variable colours, PNG on white, axes, numbers on them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fastselfie.report.palette import LIGHT

Draw = Callable[[Axes, Mapping[str, str]], None]
"""Draws into axes with colours by the names of `palette.LIGHT`."""

# Inches. At 4.2 a point is about a CSS pixel on the narrowest phones, so the text there is as large as it says.
_ON_PAGE, _ON_DISK = (4.2, 2.8), (6.4, 4.2)
_DPI = 150
# Colours that stand for the page's variables until the SVG is written.
_STANDS_FOR = {name: f"#0b0c{number:02x}" for number, name in enumerate(LIGHT)}
_STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.linewidth": 0.8,
    "xtick.major.size": 3, "ytick.major.size": 0, "legend.frameon": False, "svg.fonttype": "none",
}  # fmt: skip


def svg(draw: Draw, identity: str, description: str) -> str:
    """An ``svg`` element of one chart, with colours ``var(--...)`` of the page.

    Args:
        identity: begins every id in it; another for every chart of a page. description: for who does not see it.
    """
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": identity}], after_reset=True):
        figure = Figure(figsize=_ON_PAGE)
        axes = figure.add_axes((0.145, 0.185, 0.835, 0.785))
        for background in (figure.patch, axes.patch):
            background.set_visible(False)
        draw(axes, _STANDS_FOR)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _inline(buffer.getvalue().decode(), identity, description)


def png(panels: Mapping[str, Draw], legend: bool) -> bytes:
    """A PNG file of charts side by side, on white, each with its title.

    Args:
        panels: the charts by title. legend: below the titles of those that have curves with labels.
    """
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font may lack a letter of a folder's name
        figure = Figure(figsize=(_ON_DISK[0] * len(panels), _ON_DISK[1]), dpi=_DPI, layout="constrained")
        for axes, (title, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            draw(axes, LIGHT)
            # A dollar sign in a folder's name is no formula.
            axes.set_title(title, loc="left", color=LIGHT["ink"], parse_math=False)
            if legend and axes.get_legend_handles_labels()[0]:
                axes.legend(labelcolor=LIGHT["ink"])
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def furnish(axes: Axes, colours: Mapping[str, str], xlabel: str, tick: Callable[[float, object], str]) -> None:
    """Axes, grid and numbers: ``tick`` writes those of the vertical axis."""
    axes.grid(axis="y", color=colours["rule"], linewidth=0.8)
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.set_xlabel(xlabel, color=colours["muted"], labelpad=2)
    axes.tick_params(colors=colours["muted"])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))


def against_steps(axes: Axes) -> None:
    """Numbers of steps on the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(short))


def short(value: float, _: object = None) -> str:
    """A number on an axis: 12k for 12,000."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:.6g}"


def percent(share: float, _: object = None) -> str:
    """A share on an axis."""
    return f"{100 * share:.6g}%"


def points(difference: float, _: object = None) -> str:
    """A difference of shares on an axis, in percentage points."""
    return f"{100 * difference:+.6g}".replace("-", "−") if difference else "0"


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
