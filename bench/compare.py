"""`python -m bench compare A B`: what changed between two results of `report`, `growth` or `modes`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fastselfie.config import require
from fastselfie.errors import UserError

_HEADINGS = ("section", "side", "A ms", "B ms", "B / A", "")
_SAME = ("device", "threads", "python", "torch", "triton", "dali", "cuda", "cudnn")
_TERMINAL = 160
_ENOUGH = 4  # rounds: apart by chance once in 35 times


def add_parser(commands: Any) -> None:
    """`compare` among the commands."""
    parser = commands.add_parser("compare", help="what changed between two JSON results")
    parser.add_argument("a", type=Path, metavar="A", help="a JSON file that report, growth or modes wrote")
    parser.add_argument("b", type=Path, metavar="B", help="another one")
    parser.set_defaults(run=compare)


def compare(given: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        UserError: a file cannot be read, is no such result, or they have no side in common.
    """
    a, b = read(given.a), read(given.b)
    lines = changes(a, b)
    require(bool(lines), f"{given.a} and {given.b}: have no side in common; compare two results of the same command")
    console = Console(soft_wrap=True)
    for one in warnings(a, b):
        console.print(one, highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if "ms" in heading or "/" in heading else "left")
    for line in lines:
        table.add_row(*line)
    (console if console.is_terminal else Console(width=_TERMINAL)).print(table, markup=False)
    return 0


def changes(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each side that ran in either: medians, their ratio, and whether the change exceeds the spread, which
    it does where no round of one was as fast or slow as any of the other; with few rounds that happens by chance."""
    before, after = _timed(a), _timed(b)
    lines = []
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key), after.get(key)
        if one is None or other is None:
            lines.append((*key, *_lonely(one, other)))
            continue
        ratio = other["median"] / one["median"]
        apart = other["lowest"] > one["highest"] or other["highest"] < one["lowest"]
        word = ("slower" if ratio > 1 else "faster") if apart else "within the spread"
        if min(one["n"], other["n"]) < _ENOUGH:
            word = "too few rounds to tell"
        lines.append((*key, f"{one['median']:.4g}", f"{other['median']:.4g}", f"{ratio:.3f}", word))
    return lines if before.keys() & after.keys() else []


def warnings(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Where the two were made differently."""
    made = [
        f"warning: other {name}: {a['made_by'].get(name)} in A, {b['made_by'].get(name)} in B"
        for name in _SAME
        if a["made_by"].get(name) != b["made_by"].get(name)
    ]
    names = dict.fromkeys([*a["settings"], *b["settings"]])
    return made + [
        f"warning: other settings: {name} {a['settings'].get(name)} in A, {b['settings'].get(name)} in B"
        for name in names
        if a["settings"].get(name) != b["settings"].get(name)
    ]


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        UserError: it cannot be read or is something else.
    """
    remedy = "give a JSON file that `python -m bench report`, growth or modes wrote"
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON; {remedy}") from None
    try:
        _timed(result)
        assert isinstance(result["made_by"], dict)
        assert isinstance(result["settings"], dict)
    except (KeyError, TypeError, AttributeError, AssertionError, ValueError):
        raise UserError(f"{path}: holds no rows of timings; {remedy}") from None
    return result


def _timed(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Milliseconds by section and side."""
    timed = {(row["section"], row["side"]): row["ms"] for row in result["rows"] if "ms" in row}
    for ms in timed.values():
        if not 0 < ms["lowest"] <= ms["median"] <= ms["highest"]:
            raise ValueError("no spread around the median")
    return timed


def _lonely(one: dict[str, float] | None, other: dict[str, float] | None) -> tuple[str, ...]:
    told = [f"{ms['median']:.4g}" if ms else "" for ms in (one, other)]
    return (*told, "", "in B alone" if one is None else "in A alone")
