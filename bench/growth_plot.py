"""The plot of `bench.growth`: a panel an axis, measured points with their spread, and the ideal as a dashed line."""

from __future__ import annotations

import io
from itertools import groupby
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.report.rows import Row
from fastselfie.report.palette import LIGHT

_STYLE: dict[str, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def png(record: dict[str, Any]) -> bytes:
    """The plot as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure(record)).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def figure(record: dict[str, Any]) -> Figure:
    """Panels side by side, both axes logarithmic: equal factors are equal distances."""
    sections = [(name, list(rows)) for name, rows in groupby(record["rows"], key=lambda row: row["section"])]
    with matplotlib.style.context(["default", _STYLE], after_reset=True):
        made = Figure(figsize=(4 * len(sections), 4), dpi=130, layout="constrained")
        for index, (name, rows) in enumerate(sections):
            axes = made.add_subplot(1, len(sections), index + 1)
            _panel(axes, name, [row for row in rows if "ms" in row])
        made.suptitle(
            f"{record['settings']['recipe']}, one training step on {record['made_by']['device']}", parse_math=False
        )
    return made


def _panel(axes: Axes, name: str, rows: list[Row]) -> None:
    axes.set_title(name, loc="left", fontsize=10)
    if not rows:
        return
    x, rates = [row["x"] for row in rows], [row["images_per_second"] for row in rows]
    # Of a rate r at the median time: r * median / highest time is the lowest rate.
    below = [r - r * row["ms"]["median"] / row["ms"]["highest"] for r, row in zip(rates, rows, strict=True)]
    above = [r * row["ms"]["median"] / row["ms"]["lowest"] - r for r, row in zip(rates, rows, strict=True)]
    axes.errorbar(
        x, rates, (below, above), color=LIGHT["series-1"], marker="o", markersize=5, capsize=3, label="measured"
    )
    if all("ideal_images_per_second" in row for row in rows):
        ideal = [row["ideal_images_per_second"] for row in rows]
        axes.plot(x, ideal, "--", color=LIGHT["muted"], label="ideal: the same FLOP/s")
    axes.set(xscale="log", yscale="log", xlabel=rows[0]["axis"])
    axes.set_ylabel("images/s")
    axes.xaxis.set_major_locator(FixedLocator(x))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    highest, lowest = max(axes.get_ylim()[1], 1.25 * max(rates)), min(axes.get_ylim()[0], 0.8 * min(rates))
    axes.set_ylim(lowest, highest)
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
