"""The table of what kernels take: its rows, what is wrong with them, and its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fastselfie.training.versions import versions

SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""What a block may have at most (CUDA C++ programming guide, compute capabilities)."""
REGISTERS_MORE = 8
"""Registers above a recorded value that are no fault: fewer than make a difference to how many warps fit."""


@dataclass(frozen=True)
class Row:
    """One kernel, compiled for one shape and dtype and one architecture.

    Attributes:
        registers: a thread's; None without machine code. stack_bytes: of a thread, None likewise: these kernels have no
            arrays, so any is spilled. shared_bytes: of a block. note: why a stack is let pass.
    """

    kernel: str
    arguments: str
    architecture: int
    registers: int | None
    stack_bytes: int | None
    shared_bytes: int
    note: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What two tables' rows are compared by."""
        return self.kernel, self.arguments, self.architecture

    def __str__(self) -> str:
        return f"sm_{self.architecture} {self.kernel} ({self.arguments})"


def noted(found: Iterable[Row], recorded: Iterable[Row]) -> list[Row]:
    """The rows with the notes that a person wrote into the table."""
    notes = {row.key: row.note for row in recorded}
    return [replace(row, note=notes.get(row.key, "")) for row in found]


def faults(found: Iterable[Row]) -> list[str]:
    """What is wrong with the rows by themselves; each fault names its row."""
    return [fault for row in found for fault in _faults(row)]


def changes(found: Sequence[Row], recorded: Sequence[Row]) -> list[str]:
    """What has become worse than recorded, and rows that are new or missing."""
    before, now = {row.key: row for row in recorded}, {row.key for row in found}
    new = [f"{row}: new, not in the table" for row in found if row.key not in before]
    missing = [f"{row}: in the table, no longer compiled" for row in recorded if row.key not in now]
    worse = [change for row in found if row.key in before for change in _changes(row, before[row.key])]
    return new + missing + worse


def _changes(row: Row, before: Row) -> Iterable[str]:
    if (row.registers or 0) > (before.registers or 0) + REGISTERS_MORE:
        yield f"{row}: {row.registers} registers, {before.registers} recorded"
    if (row.stack_bytes or 0) > (before.stack_bytes or 0):
        yield f"{row}: {row.stack_bytes} bytes of stack, {before.stack_bytes} recorded"
    if row.shared_bytes > before.shared_bytes:
        yield f"{row}: {row.shared_bytes} bytes of shared memory, {before.shared_bytes} recorded"


def _faults(row: Row) -> Iterable[str]:
    limit = SHARED_LIMIT_BYTES[row.architecture]
    if row.registers is None or row.stack_bytes is None:
        yield f"{row}: no machine code"
        return
    if row.stack_bytes > 0 and not row.note:
        yield f"{row}: spills, {row.stack_bytes} bytes of stack"
    if row.shared_bytes > limit:
        yield f"{row}: {row.shared_bytes} bytes of shared memory, a block may have {limit}"


def heaviest(rows: Iterable[Row]) -> set[tuple[str, str, int]]:
    """Keys of those that take most registers, stack or shared memory, of each kernel in bf16 or not on each
    architecture: they come to a limit first."""
    alike: dict[tuple[str, bool, int], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.kernel, "bf16" in row.arguments, row.architecture), []).append(row)
    return {
        max(group, key=lambda row, name=name: getattr(row, name) or 0).key  # type: ignore[misc]
        for group in alike.values()
        for name in ("registers", "stack_bytes", "shared_bytes")
    }


def table(rows: Iterable[Row]) -> str:
    """For a terminal, a line a row."""
    lines = [f"{'arch':6} {'registers':>9} {'stack':>5} {'shared':>6}  kernel"]
    for row in rows:
        numbers = f"{row.registers!s:>9} {row.stack_bytes!s:>5} {row.shared_bytes:>6}"
        note = f"  ({row.note})" if row.note else ""
        lines.append(f"sm_{row.architecture:<3} {numbers}  {row.kernel} {row.arguments}{note}")
    return "\n".join(lines)


def read(path: Path, triton: str) -> list[Row]:
    """The rows of a file.

    Raises:
        ValueError: another version of Triton made it.
    """
    result = json.loads(path.read_text())
    made_by = result["made_by"]["triton"]
    if made_by != triton:
        raise ValueError(f"{path.name} is of Triton {made_by}, this is {triton}")
    return [Row(**row) for row in result["rows"]]


def write(path: Path, rows: Iterable[Row], triton: str) -> None:
    """A row a line. What it says of the machine is its versions alone: nothing ran on it."""
    kept = ("fastselfie", "git_commit", "python", "torch")
    made_by = {"triton": triton, **{name: versions()[name] for name in kept}}
    lines = ",\n".join(json.dumps({name: value for name, value in asdict(row).items() if value != ""}) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"made_by": {json.dumps(made_by)},\n"rows": [\n{lines}\n]}}\n')
