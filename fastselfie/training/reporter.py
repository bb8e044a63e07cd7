"""What a run says while it trains: metrics.jsonl, TensorBoard, and a progress bar or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fastselfie.training.run_folder import RunFolder
from fastselfie.training.world import World

_SHOWN = (
    ("loss", "loss {:.3f}"), ("accuracy", "accuracy {:.3f}"), ("images_per_second", "{:.0f} images/s"),
    ("data_wait", "data wait {:.1%}"), ("context_gap", "context gap {:+.3f}"),
    ("knn_accuracy", "kNN accuracy {:.3f}"), ("test_accuracy", "test accuracy {:.4f}"),
    ("validation_accuracy", "validation accuracy {:.4f}"),
)  # fmt: skip


def say(text: str) -> None:
    """One line to the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Reporter:
    """Speaks for the main process; silent in the others."""

    def __init__(self, folder: RunFolder, world: World, start: int, steps: int) -> None:
        self._folder, self._main, self._steps = folder, world.is_main, steps
        if not self._main:
            return
        from torch.utils.tensorboard import SummaryWriter  # half a second, and the other processes never write

        self._started = time.perf_counter()
        self._start = start
        self._tensorboard = SummaryWriter(str(folder.path), purge_step=start + 1)
        console = Console(stderr=True)
        self._interactive = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(12, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TextColumn("{task.fields[latest]}", table_column=Column()),  # on a narrow terminal the figures alone wrap
            console=console,
            disable=not self._interactive,
        )
        self._bar = self._progress.add_task(folder.path.name, total=steps, completed=start, latest="")

    def start(self) -> None:
        """Show the bar."""
        if self._main:
            self._progress.start()

    def advance(self) -> None:
        """A step is done."""
        if self._main:
            self._progress.advance(self._bar)

    def log(self, line: dict[str, Any]) -> None:
        """Write one line of metrics everywhere. ``line["step"]`` steps are done."""
        if not self._main:
            return
        self._folder.append_metrics(line)
        for name, value in line.items():
            if name != "step":
                self._tensorboard.add_scalar(name, value, line["step"])
        shown = " · ".join(form.format(line[name]) for name, form in _SHOWN if name in line)
        if self._interactive:
            self._progress.update(self._bar, latest=shown)
        else:
            at = f"{self._folder.path.name}: step {line['step']}/{self._steps}"
            say(f"{at} · {shown} · {self._left(line['step'])} left")

    def _left(self, done: int) -> str:
        """Time left at the pace so far, h:mm:ss."""
        seconds_a_step = (time.perf_counter() - self._started) / max(done - self._start, 1)
        return str(timedelta(seconds=round(seconds_a_step * (self._steps - done))))

    def close(self) -> None:
        """End the bar and flush the event file."""
        if self._main:
            self._progress.stop()
            self._tensorboard.close()


@contextmanager
def reporter(folder: RunFolder, world: World, start: int, steps: int) -> Iterator[Reporter]:
    """A `Reporter` while the block runs."""
    report = Reporter(folder, world, start, steps)
    try:
        report.start()
        yield report
    finally:
        report.close()
