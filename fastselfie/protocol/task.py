"""A run that a protocol is made of, and whether it is done."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastselfie.errors import UserError
from fastselfie.training.session import RESULT

PRUNED = "pruned.json"


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """A command of ours that makes a folder.

    Attributes:
        name: the folder's path in the protocol's, such as ``finetune/base/resnet50-8%-scratch-0``.
        folder: where it is. words: the command. needs: a task that must be done first. steps: how long it is, for who
        waits.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    steps: int
    needs: RunTask | None = None

    @property
    def done(self) -> bool:
        """Whether there is a result, or the trial was stopped as hopeless."""
        return (self.folder / RESULT).exists() or (self.folder / PRUNED).exists()

    def result(self) -> dict[str, Any]:
        """What ``result.json`` holds.

        Raises:
            UserError: it cannot be read.
        """
        return read_object(self.folder / RESULT)

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines of its metrics so far, none where it has not begun."""
        return metrics_of(self.folder)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's metrics.jsonl; none where there is no file. The run may be writing it; what a crash of the
    machine left in place of a line is passed over, as the run cuts it out when it goes on."""
    try:
        text = (folder / "metrics.jsonl").read_text("utf-8", "replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.split("\n")[:-1]:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``.

    Raises:
        UserError: it cannot be read or holds none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove its folder to make it again") from None
