"""What a protocol says while its runs go on: a bar over all their steps, or a line at the end of each."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fastselfie.protocol.task import RunTask
from fastselfie.training.reporter import say
from fastselfie.training.session import RESULT

_FIGURES = (("test_accuracy", "test accuracy"), ("validation_accuracy", "validation accuracy"), ("context_gap", "gap"))


class Progress:
    """For the user of a protocol."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._shown = console.is_terminal
        self._bars = Bars(
            TextColumn("{task.fields[count]}"), BarColumn(20), TimeRemainingColumn(), TextColumn("left"),
            TextColumn("{task.fields[now]}"), console=console, disable=not self._shown, speed_estimate_period=600,
        )  # fmt: skip
        self._bar = self._bars.add_task("", total=None, count="", now="")
        self._tasks: list[RunTask] = []

    def expect(self, tasks: Sequence[RunTask]) -> None:
        """What is to be done, with what is done already."""
        self._tasks = list(tasks)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, running: Sequence[RunTask]) -> None:
        """Redraw, while ``running`` run."""
        if not self._shown:
            return
        steps = {task.name: _step(task) for task in running}
        over = sum(task.steps if task.done else steps.get(task.name, 0) for task in self._tasks)
        now = ", ".join(f"{name} {step}" for name, step in steps.items())
        total = sum(task.steps for task in self._tasks)
        self._bars.update(self._bar, completed=over, total=total, count=self._count(), now=now)

    def ended(self, task: RunTask, seconds: float) -> None:
        """A task is over."""
        figures = {name: value for line in task.lines() for name, value in line.items()}
        told = [f"{what} {figures[name]:.4f}" for name, what in _FIGURES if name in figures]
        how = "stopped early" if not (task.folder / RESULT).exists() else ""
        say(f"{self._count()} {', '.join(filter(None, [task.name, *told, how]))} ({seconds:.0f} s)")

    def failed(self, task: RunTask, how: str) -> None:
        """A task failed."""
        say(f"{self._count()} {task.name}: {how}")

    def _count(self) -> str:
        return f"{sum(task.done for task in self._tasks)}/{len(self._tasks)}"


def _step(task: RunTask) -> int:
    lines = task.lines()
    return int(lines[-1]["step"]) if lines else 0
