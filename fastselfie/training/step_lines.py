"""Files of JSON lines with a ``step`` each, which grow with a run, and what one that goes on takes back of them.

What a crash of the machine has left in such a file may be any bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from fastselfie.files import replace_bytes


def lines_of(file: Path) -> list[str]:
    """Its lines, torn ones among them; none where there is no file."""
    return file.read_text("utf-8", "replace").splitlines() if file.exists() else []


def step_of(line: str) -> float:
    """The step that a line tells of, infinity for a line that is torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")


def cut_back(file: Path, step: int) -> None:
    """Drop the lines after ``step``, and torn ones: they will be written again."""
    if file.exists():
        kept = [line for line in lines_of(file) if step_of(line) <= step]
        replace_bytes(file, "".join(line + "\n" for line in kept).encode())
