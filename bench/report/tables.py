"""Rows for people: Markdown for a file, and the same cells as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.report.rows import Row

HEADINGS = (
    "side", "ms", "lowest to highest", "n", "time / first", "images/s", "of ideal", "TFLOP/s", "of matrix rate", "GB/s",
    "of copy", "peak MiB", "ready in s", "verdict",
)  # fmt: skip
_TERMINAL = 200  # columns where nobody looks at a terminal
_NOTES = """\
- ms: the median of n rounds, the sides of a section taking turns in one process; time / first: the ratio of medians.
- TFLOP/s: dense products alone, counted on the calls that are made (padding's zeros included); compiled and fused sides
  have the count of the eager side of the same mathematics. The share is of a large square product in the same dtype.
- GB/s: what would move if nothing stayed in a cache, each call reading its arguments and writing its results once; for
  `operation ...` one pass over arguments and results. The inside of a compiled graph or a kernel is not seen, so there
  is none for those sides. The share is of a large copy, and can pass 100% where caches serve or less is written than
  read.
- Peak: on CUDA, of the allocator, over what was there before the side; on a CPU, of the live tensors that a counted
  step touches, none for compiled sides.
- Ready: building the side and its first step, compilation included where no cache held it.
"""


def markdown(title: str, record: dict[str, Any]) -> str:
    """A whole result as a page. ``record``: as in its JSON file."""
    made, settings = record["made_by"], record["settings"]
    chosen = "; ".join(f"{name} {why}" for name, why in settings["chosen"].items())
    lines = [
        f"# {title}", "",
        f"`{made['command']}` on {made['device']}, {made['threads']} threads; commit {made['git_commit']}, "
        f"torch {made['torch']}, Python {made['python']}.",
        f"{settings['recipe']}: images of {settings['image_size']} pixels, patches of {settings['patch']}, width "
        f"{settings['width']:g}, batch {settings['batch_size']}; {chosen}.", "",
    ]  # fmt: skip
    lines += [*_machine(record["machine"]), ""]
    for section, rows in _sections(record["rows"]):
        lines += [f"## {section}", "", *_table(rows), *_refusals(rows), ""]
    return "\n".join([*lines, _NOTES])


def show(record: dict[str, Any]) -> None:
    """The tables on standard output."""
    plain = Console()
    console = plain if plain.is_terminal else Console(width=_TERMINAL)
    console.print("\n".join(_machine(record["machine"])), highlight=False, markup=False)
    for section, rows in _sections(record["rows"]):
        table = Table(title=section, title_justify="left", box=box.SIMPLE_HEAD)
        head, *lines = _grid(rows)
        for heading in head:
            table.add_column(heading, justify="left" if heading in ("side", "verdict") else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table if lines else section, markup=False)
        console.print("\n".join(_refusals(rows)), highlight=False, markup=False)


def cells(row: Row) -> list[str]:
    """A row's cells under `HEADINGS`; empty where there is nothing to tell."""
    ms, shares = row["ms"], row["shares"]
    return [
        row["side"], f"{ms['median']:.4g}", f"{ms['lowest']:.4g} to {ms['highest']:.4g}", str(ms["n"]),
        _number(row.get("time_over_first"), ".2f"), _number(row["images_per_second"], ".4g"),
        _number(row.get("share_of_ideal"), ".0%"), _number(row["tflops"], ".3g"), _number(shares["matrix"], ".0%"),
        _number(row["gb_per_s"], ".3g"), _number(shares["copy"], ".0%"), _number(row["peak_mib"], ".3g"),
        _number(row["startup_s"], ".3g"), row["verdict"],
    ]  # fmt: skip


def relate(rows: Sequence[Row]) -> None:
    """Add to each row of a section its median over that of the section's first side that ran."""
    for _, section in _sections(rows):
        ran = [row for row in section if "ms" in row]
        for row in ran:
            row["time_over_first"] = row["ms"]["median"] / ran[0]["ms"]["median"]


def _sections(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    return [(section, list(group)) for section, group in groupby(rows, key=lambda row: row["section"])]


def _grid(rows: Sequence[Row]) -> list[list[str]]:
    """Headings and a line for each side that ran, without the columns in which nobody has anything to tell."""
    lines = [cells(row) for row in rows if "ms" in row]
    kept = [index for index in range(len(HEADINGS)) if any(line[index] for line in lines)]
    return [[line[index] for index in kept] for line in [list(HEADINGS), *lines]]


def _table(rows: Sequence[Row]) -> list[str]:
    head, *lines = _grid(rows)
    if not lines:
        return []
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(line)} |" for line in lines)]


def _refusals(rows: Sequence[Row]) -> list[str]:
    refused = [row for row in rows if "ms" not in row]
    lines = [f"- {row['side']}: {'failed' if row['failed'] else 'not run'}, {row['not_run']}" for row in refused]
    return ["", *lines] if lines else []


def _machine(machine: dict[str, Any]) -> list[str]:
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in machine["matrix"].items())
    return [
        f"The machine, measured in the same run: {rates}; a copy moves {machine['copy'] / 1e9:.3g} GB/s.",
        f"Clocks: {machine['clocks']}.",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
