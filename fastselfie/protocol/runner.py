"""Runs side by side, each a process of its own: started when what they need is done, stopped together, gone on with."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastselfie.files import replace_json
from fastselfie.protocol.measured import Failure
from fastselfie.protocol.places import Place
from fastselfie.protocol.process import PROGRAM, last_words, start
from fastselfie.protocol.progress import Progress
from fastselfie.protocol.task import PRUNED, RunTask
from fastselfie.training.reporter import say
from fastselfie.training.signals import Stopped, received

IN_A_ROW = 3
"""Failures without a success between them after which no more runs are started. A full disk or data that is gone fails
every run, and there may be hundreds; one or two of them may be variants that make no good runs."""
_POLL_S, _LOOK_S = 0.2, 1.0
Hopeless = Callable[[RunTask], dict[str, float] | None]
Forgiven = Callable[[RunTask, str], dict[str, float] | None]


@dataclass(kw_only=True)
class Running:
    """A task's process. ``hopeless``: why it was told to stop, for `PRUNED`."""

    task: RunTask
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    started: float = field(default_factory=time.monotonic)
    hopeless: dict[str, float] | None = None


class Runner:
    """Carries tasks out. A run's words to its user go to ``logs``, one file a task. program: takes a task's words."""

    def __init__(self, place: Place, logs: Path, progress: Progress, program: Sequence[str] = PROGRAM) -> None:
        self._place, self._logs, self._progress, self._program = place, logs, progress, program
        self.failures: dict[str, Failure] = {}
        """Of the tasks that failed, by name, the first one first."""
        self._in_a_row = 0
        self._tasks: Sequence[RunTask] = ()
        self._running: list[Running] = []

    def run(
        self, tasks: Callable[[], Sequence[RunTask]], hopeless: Hopeless | None = None,
        forgiven: Forgiven | None = None, late: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Do what is not done, in the order given where nothing is waited for.

        A task that fails is put down in `failures`, and the others go on but for those that need it; after `IN_A_ROW`
        failures none is started, until one of those that still run succeeds.

        Args:
            tasks: all there are; asked again when one has ended, as it may have decided what else is to be done.
            hopeless: looked at now and then for every task that runs; figures that say why it may be stopped early,
                which ``pruned.json`` keeps. forgiven: asked about a task that failed with those last words; likewise,
                and it counts as done. late: names of tasks that are tried after all others, as they failed before:
                first, they could keep the others from being tried.

        Raises:
            Stopped: a signal came; what ran is stopped, its state saved.
        """
        # The runs are in sessions of their own: what a terminal sends is passed on by us alone.
        with received(self._kill_all) as signal, self._progress:
            try:
                ready = self._ask(tasks, late)
                due = 0.0
                while (ready or self._running) and not signal.number:
                    if time.monotonic() >= due:  # what runs have logged is read from the start: not at every turn
                        self._start(ready)
                        self._watch(hopeless)
                        due = time.monotonic() + _LOOK_S
                    time.sleep(_POLL_S)
                    # A batch system tells our runs too: that they end of a signal is no failure of theirs then.
                    if not signal.number and self._reap(forgiven):
                        ready, due = self._ask(tasks, late), 0.0
            finally:
                self._stop_all()
            if signal.number:
                done = sum(task.done for task in self._tasks)
                what = f"stopped with {done} of {len(self._tasks)} runs done, the others are saved"
                raise Stopped(f"{what}; the same command goes on", 128 + signal.number)

    @property
    def gave_up(self) -> bool:
        """Whether so many tasks have failed in a row that no more are started."""
        return self._in_a_row >= IN_A_ROW

    def _ask(self, tasks: Callable[[], Sequence[RunTask]], late: Collection[str]) -> list[RunTask]:
        """What may be started by now, in order."""
        self._tasks = tasks()
        self._progress.expect(self._tasks)
        if self.gave_up:
            return []
        names = {running.task.name for running in self._running} | self.failures.keys()
        waiting = [task for task in self._tasks if not task.done and task.name not in names]
        ready = [task for task in waiting if task.needs is None or task.needs.done]
        return sorted(ready, key=lambda task: task.name in late)

    def _start(self, ready: list[RunTask]) -> None:
        """Start what there is room for now."""
        while ready:
            peaks = [_peak_gib(running.task) for running in self._running]
            environment = self._place.next([running.environment for running in self._running], peaks)
            if environment is None:
                return
            task = ready.pop(0)
            process = start(task.words, self.log(task), environment, self._program)
            self._running.append(Running(task=task, process=process, environment=environment))

    def log(self, task: RunTask) -> Path:
        """The file that a task's words go to."""
        return self._logs / f"{task.name.replace('/', '.')}.log"

    def _watch(self, hopeless: Hopeless | None) -> None:
        """Look at what runs have logged so far."""
        self._progress.show([running.task for running in self._running])
        for running in self._running:
            if hopeless is not None and running.hopeless is None and (why := hopeless(running.task)):
                running.hopeless = why
                running.process.terminate()

    def _reap(self, forgiven: Forgiven | None) -> bool:
        """See to what has ended; whether anything has."""
        ended = [running for running in self._running if running.process.poll() is not None]
        for running in ended:
            self._running.remove(running)
            task, why = running.task, running.hopeless
            if not task.done and why is None:
                words = last_words(self.log(task), running.process.returncode)
                why = forgiven(task, words) if forgiven is not None else None
                if why is None:
                    self._fail(task, words)
                    continue
            if not task.done and why is not None:
                replace_json(task.folder / PRUNED, dict(why))
            self._in_a_row = 0
            self._progress.ended(task, time.monotonic() - running.started)
        return bool(ended)

    def _fail(self, task: RunTask, words: str) -> None:
        """Put down that ``task`` failed, without the folder that a run names first of what is wrong in it: we do."""
        words = words.removeprefix(f"{task.folder}: ")
        log = str(self.log(task).relative_to(self._logs.parent))
        self.failures[task.name] = Failure(run=task.name, why=words, log=log)
        self._in_a_row += 1
        self._progress.failed(task, f"failed: {words}; its log is {self.log(task)}")
        if self._in_a_row == IN_A_ROW:
            say(f"{IN_A_ROW} runs failed in a row: no more are started before one succeeds")

    def _stop_all(self) -> None:
        """Ask all that still run to save themselves and stop, once: a second signal would end them unsaved."""
        for running in self._running:
            if running.process.poll() is None and running.hopeless is None:
                running.process.terminate()
        for running in self._running:
            running.process.wait()
        self._running.clear()

    def _kill_all(self, number: int) -> None:
        """The user does not want to wait."""
        for running in self._running:
            running.process.kill()


def _peak_gib(task: RunTask) -> float | None:
    """The most memory that a running task has logged."""
    logged = [float(line["peak_gib"]) for line in task.lines() if "peak_gib" in line]
    return max(logged, default=None)
