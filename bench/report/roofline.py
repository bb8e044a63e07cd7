"""Where each side lies under the machine's measured roof: arithmetic intensity against TFLOP/s, as PNG (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from bench.report.rows import Row
from bench.report.whole_step import EAGER, SECTION
from fastselfie.report.palette import LIGHT

_STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
}  # fmt: skip
_DASHES = {"bf16": "-", "fp32": (0, (5, 2))}
_NEAR, _FAR, _DIRECTIONS = 11, 90, 16  # points from a mark to its number; directions that are tried
_MARK, _DIGIT, _LINE = 9, 6, 11  # points: a mark's size, a digit's width, a line's height


@dataclass(frozen=True, kw_only=True)
class Point:
    """A side in the plot. ``seen``: its own bytes were counted; if not, they are those of the eager side."""

    section: str
    side: str
    intensity: float
    tflops: float
    seen: bool


def points(rows: Sequence[Row]) -> list[Point]:
    """Every side with dense products whose traffic, or that of the side it was counted as, is known."""
    gbyte = {(row["section"], row["side"]): row.get("gbyte") for row in rows}
    first = {row["side"]: row for row in reversed(rows) if row["section"] == SECTION and "ms" in row}
    found = []
    for row in rows:
        if not row.get("tflops"):
            continue
        own = row["gbyte"]
        moved = own or gbyte.get((row["section"], row["counted_as"])) or gbyte.get((row["section"], EAGER))
        like = first.get(row["counted_as"])
        if moved is None and like and like["gbyte"]:  # of its step; one of several processes does a part of that
            moved = like["gbyte"] * row["gflop"] / like["gflop"]
        if moved:
            found.append(Point(
                section=row["section"], side=row["side"], intensity=row["gflop"] / moved, tflops=row["tflops"],
                seen=bool(own),
            ))  # fmt: skip
    return found


def png(record: dict[str, Any]) -> bytes:
    """The plot of a report's rows under its machine's roof."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure(record)).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def figure(record: dict[str, Any]) -> Figure:
    """Numbered marks, and beside the axes what each number is."""
    drawn = points(record["rows"])
    with matplotlib.style.context(["default", _STYLE], after_reset=True):
        made = Figure(figsize=(11.5, max(5.6, 0.24 * len(drawn) + 1.6)), dpi=130)
        FigureCanvasAgg(made)
        axes = made.add_axes((0.07, 0.11, 0.5, 0.8))
        _roofs(axes, record["machine"], [one.intensity for one in drawn], [one.tflops for one in drawn])
        colours = _colours(drawn)
        for one in drawn:
            colour = colours[one.section]
            axes.plot(
                one.intensity, one.tflops, "o", color=colour, markersize=7, zorder=4,
                markerfacecolor=colour if one.seen else LIGHT["card"], markeredgewidth=1.6,
            )  # fmt: skip
        _number(made, axes, drawn)
        _key(made, drawn, colours)
        axes.set_title(f"{record['settings']['recipe']} on {record['made_by']['device']}", loc="left", parse_math=False)
    return made


def _roofs(axes: Axes, machine: dict[str, Any], intensities: Sequence[float], tflops: Sequence[float]) -> None:
    """The measured ceilings of each dtype, and axes that hold them and the points."""
    ridges = [rate / machine["copy"] for rate in machine["matrix"].values()]
    left, right = min([*intensities, *ridges]) / 3, max([*intensities, *ridges]) * 6
    lowest = min([*tflops, *(rate / 1e12 for rate in machine["matrix"].values())]) / 4
    x = np.geomspace(left, right, 200)
    for dtype, rate in machine["matrix"].items():
        y = np.minimum(rate, machine["copy"] * x) / 1e12
        axes.plot(x, y, color=LIGHT["muted"], linewidth=1.4, linestyle=_DASHES[dtype], zorder=2)
        axes.annotate(
            f"{dtype} {rate / 1e12:.3g} TFLOP/s", (right, rate / 1e12), (0, 4), textcoords="offset points",
            ha="right", color=LIGHT["muted"],
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(lowest, max(machine["matrix"].values()) / 1e12 * 2))
    axes.set_xlabel(f"FLOP a byte moved; the slope is a copy's {machine['copy'] / 1e9:.3g} GB/s", color=LIGHT["ink"])
    axes.set_ylabel("TFLOP/s", color=LIGHT["ink"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color=LIGHT["rule"], linewidth=0.8)
    axes.set_axisbelow(True)


def _colours(drawn: Sequence[Point]) -> dict[str, str]:
    series = [colour for name, colour in LIGHT.items() if name.startswith("series-")]
    sections = dict.fromkeys(one.section for one in drawn)
    return {section: series[index % len(series)] for index, section in enumerate(sections)}


def _number(made: Figure, axes: Axes, drawn: Sequence[Point]) -> None:
    """A number at each mark, where it covers no other number and no mark."""
    made.draw_without_rendering()
    unit = made.dpi / 72  # pixels a point
    marks = [axes.transData.transform((one.intensity, one.tflops)) for one in drawn]
    taken = [_box(mark, _MARK * unit, _MARK * unit) for mark in marks]
    for number, (one, mark) in enumerate(zip(drawn, marks, strict=True), start=1):
        width, height = (_DIGIT * len(str(number)) + 3) * unit, _LINE * unit
        places = ((mark + unit * offset, offset) for offset in _offsets())
        free = (
            (box, offset)
            for box, offset in ((_box(place, width, height), offset) for place, offset in places)
            if axes.bbox.contains(box.x0, box.y0) and not any(box.overlaps(other) for other in taken)
        )
        box, offset = next(free, (_box(mark, width, height), np.zeros(2)))
        taken.append(box)
        axes.annotate(
            str(number), (one.intensity, one.tflops), tuple(offset), textcoords="offset points", ha="center",
            va="center", color=LIGHT["ink"], fontsize=9, zorder=3,
            arrowprops={"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.6, "shrinkA": 5, "shrinkB": 3},
        )  # fmt: skip


def _offsets() -> Iterator[NDArray[np.float64]]:
    """Where a number may stand, in points from its mark, the nearest first."""
    for radius in range(_NEAR, _FAR, 4):
        for angle in np.linspace(0, 2 * np.pi, _DIRECTIONS, endpoint=False):
            yield radius * np.array([np.cos(angle), np.sin(angle)])


def _box(centre: NDArray[np.float64], width: float, height: float) -> Bbox:
    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)


def _key(made: Figure, drawn: Sequence[Point], colours: dict[str, str]) -> None:
    """What the numbers are, a section a block."""
    y, section = 0.91, ""
    line = 0.8 / max(20, len(drawn) + 2 * len(colours) + 3)
    for number, one in enumerate(drawn, start=1):
        if one.section != section:
            y -= line if section else 0
            section = one.section
            made.text(0.6, y, section, color=colours[section], weight="bold", va="center", parse_math=False)
            y -= line
        made.text(0.625, y, str(number), color=LIGHT["ink"], va="center", ha="right")
        made.text(0.632, y, f"{one.side}, {one.tflops:.3g} TFLOP/s", color=LIGHT["ink"], va="center", parse_math=False)
        y -= line
    hollow = "hollow: at the bytes of the eager side; its own are not seen"
    if any(not one.seen for one in drawn):
        made.text(0.6, 0.03, hollow, color=LIGHT["muted"], fontsize=8.5, va="center")
