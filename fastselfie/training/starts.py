"""Every start of a run: from which step on which machine computed, and with what. Figures of speed are of that.

``starts.jsonl`` has a line for each start whose steps count: those after its ``step``, up to that of the next line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastselfie.config import RunConfig, contrast, flag
from fastselfie.errors import UserError
from fastselfie.files import replace_bytes
from fastselfie.training.reporter import say
from fastselfie.training.versions import versions

FILE = "starts.jsonl"
_COMPUTING = (
    "device", "precision", "compile", "kernels", "trunk", "norm", "sgd", "micro_batch_size", "deterministic",
)  # fmt: skip
"""Settings that say how a step is computed."""


@dataclass(frozen=True)
class Start:
    """``step``: how many were done. settings: how it computes, by name, with every ``auto`` resolved. made_by: see
    `fastselfie.training.versions.versions`."""

    step: int
    settings: dict[str, Any]
    made_by: dict[str, Any]


def note_start(folder: Path, step: int, config: RunConfig) -> None:
    """Note in a run's ``folder`` that from ``step`` on this process computes, and forget starts whose steps are to be
    done again. The user is told what is other than at the start before.

    Raises:
        UserError: the file is damaged.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name in _COMPUTING}
    now = Start(step, settings, versions())
    before = [start for start in read_starts(folder) if start.step < step]
    lines = [json.dumps(dataclasses.asdict(start)) + "\n" for start in [*before, now]]
    replace_bytes(folder / FILE, "".join(lines).encode())
    if before and (changes := list(_changes(before[-1], now))):
        say(f"{folder}: from here on with {'; '.join(changes)}")


def read_starts(folder: Path) -> list[Start]:
    """Those of the run in ``folder``; none of one that was begun before runs kept them.

    Raises:
        UserError: the file cannot be read, or a line is damaged.
    """
    file = folder / FILE
    try:
        starts = [Start(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        for start in starts:
            if type(start.step) is not int or not isinstance(start.settings, dict):
                raise TypeError("a start is a step with settings")
            if not isinstance(start.made_by, dict):
                raise TypeError("a start tells what it was made by")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}); restore it, or remove it") from None
    return starts


def _changes(before: Start, now: Start) -> Iterator[str]:
    for name, value in now.settings.items():
        if before.settings.get(name) != value:
            yield contrast(flag(name), value, before.settings.get(name))
    for name, value in now.made_by.items():
        if before.made_by.get(name) != value:
            yield contrast(name.replace("_", " "), value, before.made_by.get(name))
