"""`python -m bench growth`: images/s of FastSelfie's eager step against batch size, width and patch count.

The ideal: as many FLOP/s as at the recipe's own point, so that images/s fall as an image's counted operations grow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from bench.report.machine import Machine, measure_machine
from bench.report.record import Record
from bench.report.rows import Row
from bench.report.settings import Bench, add_options, settle
from bench.report.sides import Side, Step, measure
from bench.report.tables import show
from bench.report.whole_step import trainer
from bench.training_step import scenes, steps_of
from fastselfie.config import PretrainConfig

_FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # of the recipe's batch
_WIDTHS, _GRIDS = (1 / 8, 1 / 4, 1 / 2, 1), (3, 4, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What grows: the section's name, the label of what is counted, and each value with its configuration."""

    section: str
    label: str
    points: dict[float, PretrainConfig]
    own: float


def add_parser(commands: Any) -> None:
    """`growth` among the commands."""
    parser = commands.add_parser("growth", help="images/s against batch size, width and patch count, as a plot")
    add_options(parser)
    parser.set_defaults(run=growth)


def growth(given: argparse.Namespace) -> int:
    """Write growth.json, growth.md and growth.png; exit status 1 if a point failed.

    Raises:
        UserError: an option makes no sense here.
    """
    bench = settle(given)
    machine = measure_machine(bench.device, bench.smoke)
    record = Record("growth", "Growth of the step's cost", bench, machine, plot=("growth.png", _plot))
    for axis in axes(bench.config, bench.smoke):
        record.add(axis.section, partial(along, axis, bench, machine))
    show(record.told)
    return 1 if record.failed else 0


def _plot(told: dict[str, Any]) -> bytes:
    from bench.growth_plot import png

    return png(told)


def axes(config: PretrainConfig, smoke: bool) -> list[Axis]:
    """The recipe's own value, and others around it: fractions of its batch, other widths, other image sizes of the
    same patches."""
    batches = sorted({max(1, round(config.batch_size * factor)) for factor in ((1 / 2, 1) if smoke else _FACTORS)})
    widths = sorted({config.width, *((1 / 16, 1 / 8) if smoke else _WIDTHS)})
    grids = sorted({config.grid, *((3, 4) if smoke else _GRIDS)})
    return [
        Axis(
            section="by batch size", label="images a step", own=config.batch_size,
            points={batch: replace(config, batch_size=batch) for batch in batches},
        ),
        Axis(
            section="by width", label="width of the network", own=config.width,
            points={width: replace(config, width=width) for width in widths},
        ),
        Axis(
            section="by patch count", label=f"patches of {config.patch} pixels an image", own=config.patches,
            points={grid**2: replace(config, image_size=grid * config.patch) for grid in grids},
        ),
    ]  # fmt: skip


def along(axis: Axis, bench: Bench, machine: Machine) -> list[Row]:
    """A row for each point, with ``x``, ``axis`` and what the ideal would make of it."""
    kernels = cast(Literal["on", "off"], bench.config.kernels)
    trunk = cast(Literal["fused", "plain"], bench.config.trunk)
    for config in axis.points.values():
        scenes(config)
    sides = [
        Side(
            name=f"{value:g} {axis.label}", dtype=config.precision, kernels=kernels, trunk=trunk,
            images=config.batch_size, build=partial(_step, replace(bench, config=config)),
        )
        for value, config in axis.points.items()
    ]  # fmt: skip
    rows, _ = measure(axis.section, sides, bench, machine, images=None)
    for value, row in zip(axis.points, rows, strict=True):
        row |= {"x": value, "axis": axis.label}
    add_ideal(rows, axis.own)
    return rows


def _step(bench: Bench) -> Step:
    return steps_of(trainer(bench))


def add_ideal(rows: Sequence[Row], own: float) -> None:
    """To each row that ran: images/s at the FLOP/s of the point ``own``, and the share of them that there are."""
    base = next((row for row in rows if row["x"] == own and "ms" in row), None)
    if base is None:
        return
    for row in rows:
        if "ms" in row:
            row["ideal_images_per_second"] = row["images_per_second"] * base["tflops"] / row["tflops"]
            row["share_of_ideal"] = row["tflops"] / base["tflops"]
