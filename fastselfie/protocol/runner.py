"""Runs side by side, each a process of its own: started when what they need is done, stopped together, gone on with."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fastselfie.errors import UserError
from fastselfie.protocol.places import Place
from fastselfie.protocol.progress import Progress
from fastselfie.protocol.task import PRUNED, Task
from fastselfie.training.files import replace_json
from fastselfie.training.signals import Stopped

PROGRAM = (sys.executable, "-m", "fastselfie")
_POLL_S, _LOOK_S = 0.2, 1.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIBC = ctypes.CDLL(
    None
)  # opened here: in a child between fork and exec another thread may have held the loader's lock


@dataclass(kw_only=True)
class Running:
    """A task's process. ``hopeless``: why it was told to stop, for `PRUNED`."""

    task: Task
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    started: float = field(default_factory=time.monotonic)
    hopeless: dict[str, float] | None = None


class Runner:
    """Carries tasks out. A run's words to its user go to ``logs``, one file a task. program: takes a task's words."""

    def __init__(self, place: Place, logs: Path, progress: Progress, program: Sequence[str] = PROGRAM) -> None:
        self._place, self._logs, self._progress, self._program = place, logs, progress, program
        self._tasks: Sequence[Task] = ()
        self._running: list[Running] = []
        self._signal = 0

    def run(
        self, tasks: Callable[[], Sequence[Task]], hopeless: Callable[[Task], dict[str, float] | None] | None = None,
        forgiven: Callable[[Task, str], dict[str, float] | None] | None = None,
    ) -> None:  # fmt: skip
        """Do what is not done, in the order given where nothing is waited for.

        Args:
            tasks: all there are; asked again when one has ended, as it may have decided what else is to be done.
            hopeless: looked at now and then for every task that runs; figures that say why it may be stopped early,
                which ``pruned.json`` keeps. forgiven: asked about a task that failed with those last words; likewise,
                and the others go on.

        Raises:
            UserError: a task failed; the others are stopped, their states saved. Stopped: a signal came; likewise.
        """
        with self._signals(), self._progress:
            try:
                waiting = self._ask(tasks, ())
                due = 0.0
                while (waiting or self._running) and not self._signal:
                    if time.monotonic() >= due:  # what runs have logged is read from the start: not at every turn
                        self._start(waiting)
                        self._watch(hopeless)
                        due = time.monotonic() + _LOOK_S
                    time.sleep(_POLL_S)
                    # A batch system tells our runs too: that they end of a signal is no failure of theirs then.
                    if not self._signal and self._reap(forgiven):
                        waiting, due = self._ask(tasks, [running.task for running in self._running]), 0.0
            finally:
                self._stop_all()
            if self._signal:
                done = sum(task.done for task in self._tasks)
                what = f"stopped with {done} of {len(self._tasks)} runs done, the others are saved"
                raise Stopped(f"{what}; the same command goes on", 128 + self._signal)

    def _ask(self, tasks: Callable[[], Sequence[Task]], running: Sequence[Task]) -> list[Task]:
        """What is waiting by now."""
        self._tasks = tasks()
        self._progress.expect(self._tasks)
        names = {task.name for task in running}
        return [task for task in self._tasks if not task.done and task.name not in names]

    def _start(self, waiting: list[Task]) -> None:
        """Start what can be started now."""
        for task in list(waiting):
            if task.needs is not None and not task.needs.done:
                continue
            peaks = [_peak_gib(running.task) for running in self._running]
            environment = self._place.next([running.environment for running in self._running], peaks)
            if environment is None:
                return
            waiting.remove(task)
            self._running.append(Running(task=task, process=self._open(task, environment), environment=environment))

    def _open(self, task: Task, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        log = self.log(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {' '.join(('fastselfie', *task.words))}\n".encode())
            file.flush()
            return subprocess.Popen(
                [*self._program, *task.words], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=os.environ | environment, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def log(self, task: Task) -> Path:
        """The file that a task's words go to."""
        return self._logs / f"{task.name.replace('/', '.')}.log"

    def _watch(self, hopeless: Callable[[Task], dict[str, float] | None] | None) -> None:
        """Look at what runs have logged so far."""
        self._progress.show([running.task for running in self._running])
        for running in self._running:
            if hopeless is not None and running.hopeless is None and (why := hopeless(running.task)):
                running.hopeless = why
                running.process.terminate()

    def _reap(self, forgiven: Callable[[Task, str], dict[str, float] | None] | None) -> bool:
        """See to what has ended; whether anything has."""
        ended = [running for running in self._running if running.process.poll() is not None]
        for running in ended:
            self._running.remove(running)
            task, why = running.task, running.hopeless
            if not task.done and why is None:
                words = self._last_words(task)
                why = forgiven(task, words) if forgiven is not None else None
                if why is None:
                    code = running.process.returncode
                    raise UserError(f"{task.name}: failed ({code}): {words}; its log is {self.log(task)}")
            if not task.done and why is not None:
                replace_json(task.folder / PRUNED, dict(why))
            self._progress.ended(task, time.monotonic() - running.started)
        return bool(ended)

    def _last_words(self, task: Task) -> str:
        lines = self.log(task).read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.removeprefix("fastselfie: ") for line in reversed(lines) if line.strip()), "without a word")

    def _stop_all(self) -> None:
        """Ask all that still run to save themselves and stop, once: a second signal would end them unsaved."""
        for running in self._running:
            if running.process.poll() is None and running.hopeless is None:
                running.process.terminate()
        for running in self._running:
            running.process.wait()
        self._running.clear()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass Ctrl-C and SIGTERM on; the runs are in sessions of their own, so that they hear of it once."""

        def receive(number: int, frame: FrameType | None) -> None:
            if self._signal:
                for running in self._running:
                    running.process.kill()
            self._signal = number

        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _peak_gib(task: Task) -> float | None:
    """The most memory that a running task has logged."""
    logged = [float(line["peak_gib"]) for line in task.lines() if "peak_gib" in line]
    return max(logged, default=None)


def _die_with_parent() -> None:
    """In the child: a protocol that is killed leaves no runs behind; they save themselves and stop (Linux)."""
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
