"""A table before it has a form: cells are values, and a column's kind says how one reads and what a CSV file keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastselfie.protocol.gains import Paired, Spread

NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Ranged:
    """A share with the interval that it came with; None where it had none."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """In place of a value that a run was to give, and the run failed. number: of the note below that says why."""

    number: int
    why: str

    def __str__(self) -> str:
        return f"failed ({self.number})"


@dataclass(frozen=True, kw_only=True)
class CellKind:
    """What a column holds.

    Attributes:
        parts: what follows the column's name in each of its CSV columns. show: a value for a reader. raw: a value for
            each of ``parts``, in full precision. flush_right: as numbers are.
    """

    parts: tuple[str, ...]
    show: Callable[[Any], str]
    raw: Callable[[Any], tuple[Any, ...]]
    flush_right: bool = True


@dataclass(frozen=True, kw_only=True)
class Column:
    """``name`` is for CSV files, ``heading`` for readers."""

    name: str
    heading: str
    kind: CellKind


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: a value, None or `Failed` for each column. ``first`` of a group, set off from the row above it."""

    cells: tuple[Any, ...]
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table. ``name`` is its files'; ``notes`` are sentences below it."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def shown(self) -> list[list[str]]:
        """Every cell as a reader sees it."""
        kinds = [column.kind for column in self.columns]
        return [[_shown(kind, cell) for kind, cell in zip(kinds, line.cells, strict=True)] for line in self.lines]


def _shown(kind: CellKind, cell: Any) -> str:
    if isinstance(cell, Failed):
        return str(cell)
    return NONE if cell is None else kind.show(cell)


def raw(kind: CellKind, cell: Any) -> tuple[Any, ...]:
    """What a CSV file keeps of a cell, a value for each of ``kind.parts``. A failure is told where text may stand."""
    if isinstance(cell, Failed) and kind is TEXT:
        return (cell.why,)
    return (None,) * len(kind.parts) if cell is None or isinstance(cell, Failed) else kind.raw(cell)


def percent(share: float) -> str:
    """A share in percent with one decimal and no sign, as the paper's tables have it."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points: signed, one decimal, or more where one would hide the sign."""
    for decimals in (1, 2, 3):
        text = f"{100 * difference:+.{decimals}f}"
        if float(text):
            return text.replace("-", "−")
    return "0.0"


def interval(low: float, high: float) -> str:
    """An interval of differences; no brackets, which Markdown and LaTeX take for something else."""
    return f"{points(low)} to {points(high)}"


def with_interval(found: Paired) -> str:
    """A mean difference and its interval."""
    if found.low is None or found.high is None:
        return f"{points(found.mean)} ({found.verdict})"
    return f"{points(found.mean)} ({interval(found.low, found.high)})"


def mean_and_sd(found: Spread) -> str:
    """As the paper writes it; the mean alone of one seed."""
    return percent(found.mean) if found.sd is None else f"{percent(found.mean)} ± {percent(found.sd)}"


def _ranged(found: Ranged) -> str:
    return points(found.value) + (f" ({interval(*found.interval)})" if found.interval is not None else "")


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _itself(value: Any) -> tuple[Any, ...]:
    return (value,)


TEXT = CellKind(parts=("",), show=str, raw=_itself, flush_right=False)
COUNT = CellKind(parts=("",), show="{:,}".format, raw=_itself)
SHARE = CellKind(parts=("",), show=percent, raw=_itself)
POINTS = CellKind(parts=("",), show=points, raw=_itself)
P_VALUE = CellKind(parts=("",), show=_p_value, raw=_itself)
RANGED = CellKind(
    parts=("", "_low", "_high"), show=_ranged, raw=lambda found: (found.value, *(found.interval or (None, None)))
)
SPREAD = CellKind(parts=("_mean", "_sd", "_n"), show=mean_and_sd, raw=lambda found: (found.mean, found.sd, found.n))
PAIRED = CellKind(
    parts=("_mean", "_sd", "_n", "_low", "_high", "_p", "_unpaired"),
    show=with_interval,
    raw=lambda found: (found.mean, found.sd, found.n, found.low, found.high, found.p, found.unpaired),
)

VARIANT = Column(name="variant", heading="variant", kind=TEXT)
ENCODER = Column(name="encoder", heading="encoder", kind=TEXT)
LABELS = Column(name="labels", heading="labels", kind=TEXT)
VERDICT = Column(name="verdict", heading="verdict", kind=TEXT)
PAIRS = Column(name="pairs", heading="seeds", kind=COUNT)
