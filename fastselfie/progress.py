"""How far something long is: a bar on a terminal, and elsewhere, as in a job's log, a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY_S = 60.0


class Meter:
    """Told how many of ``total`` are done, it tells the user."""

    def __init__(self, what: str, bar: Progress, total: int | None) -> None:
        self._what, self._bar, self._total, self._done = what, bar, total, 0
        self._task = bar.add_task(what, total=total)
        self._began: tuple[float, int] | None = None
        self._spoke_s = time.monotonic()

    def advance(self, more: int) -> None:
        """So many more are done."""
        self.at(self._done + more, self._total)

    def at(self, done: int, total: int | None) -> None:
        """So many are done, of so many as far as that is known."""
        now = time.monotonic()
        self._done, self._total = done, total
        self._began = self._began or (now, done)
        self._bar.update(self._task, completed=done, total=total)
        if self._bar.disable and now - self._spoke_s >= EVERY_S:
            self._spoke_s = now
            print(f"{self._what}: {done:,}{self._rest(now)}", file=sys.stderr, flush=True)

    def _rest(self, now: float) -> str:
        """Time left at the pace since the first that was heard of: what an earlier process did took no time."""
        if self._total is None or self._began is None:
            return ""
        began_s, before = self._began
        if self._done == before:
            return f" of {self._total:,}"
        seconds = (now - began_s) / (self._done - before) * (self._total - self._done)
        return f" of {self._total:,}, {timedelta(seconds=round(seconds))} left"


@contextmanager
def meter(what: str, total: int | None = None) -> Iterator[Meter]:
    """A `Meter` of ``what`` on stderr while the block runs."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=console, transient=True, speed_estimate_period=120, disable=not console.is_terminal
    ) as bar:
        yield Meter(what, bar, total)
