"""Runs that a killed protocol has left: they hear of its end, save themselves and stop, which takes them a moment."""

from __future__ import annotations

import time
from pathlib import Path

from fastselfie.errors import UserError
from fastselfie.files import LOCK, held
from fastselfie.training.reporter import say

SAVED_WITHIN_S = 120.0
"""For one step or one evaluation of a large network on a CPU, and a checkpoint."""
_POLL_S = 0.1


def wait_for_leftovers(folder: Path, longest_s: float = SAVED_WITHIN_S) -> None:
    """Wait until no process trains in a run's folder below ``folder``, a protocol's; say so where there is one.

    Raises:
        UserError: one still does after ``longest_s``, and so is none that saves itself.
    """
    busy, deadline = _busy(folder), time.monotonic() + longest_s
    if busy:
        say(f"waiting for runs of a protocol that was killed to save themselves: {', '.join(busy)}")
    while busy:
        if time.monotonic() > deadline:
            raise UserError(f"--out {folder}: another process still works in {busy[0]}; stop it, or wait for it")
        time.sleep(_POLL_S)
        busy = _busy(folder)


def _busy(folder: Path) -> list[str]:
    """Runs whose lock a process holds. The protocol's own lies in ``folder`` itself."""
    locks = sorted(folder.glob(f"*/**/{LOCK}"))
    return [str(lock.parent.relative_to(folder)) for lock in locks if _is_held(lock)]


def _is_held(lock: Path) -> bool:
    with held(lock) as free:
        return not free
