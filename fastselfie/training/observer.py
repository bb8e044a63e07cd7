"""What is looked at between steps: figures of a run for its log, evaluations, single images."""

from __future__ import annotations

import math

from fastselfie.errors import LocalError, UserError
from fastselfie.training.optimizer import learning_rate
from fastselfie.training.reporter import Reporter
from fastselfie.training.trainer import Trainer


class Observer:
    """Looks at a run in training whenever something is due, and tells a `Reporter`."""

    def __init__(self, trainer: Trainer, reporter: Reporter) -> None:
        self._trainer, self._reporter = trainer, reporter
        self._job, self._world, self._folder = trainer.job, trainer.world, trainer.folder

    def begin(self, start: int) -> None:
        """Before the first step of this process: what a run that starts looks at, or one that goes on still owes."""
        owes = self._owes(start)
        if owes:
            self._report(start)
        if owes or start == 0:
            self._watch(start)

    def after_step(self, done: int) -> None:
        """Once ``done`` steps are done.

        Raises:
            UserError: the loss is not finite, or more images are bad than may be; then the state is saved.
        """
        self._reporter.advance()
        self._report(done)
        self._watch(done)

    def _owes(self, start: int) -> bool:
        """Whether a checkpoint was written after ``start`` steps because their evaluation met a bad file."""
        if start == 0 or not self._job.due(start):
            return False
        return not self._world.in_main(lambda: self._folder.has_line(start))

    def _report(self, done: int) -> None:
        """Log the window and evaluate, where ``done`` steps make either due."""
        config, trainer, line = self._job.config, self._trainer, dict[str, float]()
        evaluated = self._evaluate(done)
        if done % config.log_every == 0 or done == config.steps:
            rate = {"lr": learning_rate(done - 1, config.steps, config.lr)}
            line = trainer.window.take() | rate | trainer.throughput.take()
        if not math.isfinite(line.get("loss", 0.0)):
            what = f"{self._folder.path}: the loss is {line['loss']} at step {done}"
            raise UserError(f"{what}; start again in another --out with a smaller --lr")
        if line or evaluated:
            quarantine = self._job.quarantine
            quarantine.settle(self._world, self._folder.path, done)
            bad = {"quarantined": len(quarantine)} if len(quarantine) else {}
            self._reporter.log({"step": done} | line | evaluated | bad)
            self._check_quarantine(done)

    def _evaluate(self, done: int) -> dict[str, float]:
        """The figures that ``done`` steps make due, of the network as it stands.

        Before anything of this step is logged: where a bad file prevents it, a resumed run begins here.
        """
        due = self._job.due(done)
        if not due:
            return {}
        try:
            with self._trainer.evaluation():
                return {name: value for measure in due for name, value in measure().items()}
        except LocalError:
            if not self._world.distributed:
                self._trainer.save(done)
            raise

    def _check_quarantine(self, done: int) -> None:
        try:
            self._job.quarantine.check()
        except UserError:
            if done:
                self._trainer.save(done)
            raise

    def _watch(self, done: int) -> None:
        """Look at single images after ``done`` steps, where that is due."""
        watch = self._job.watch
        if watch is not None and watch.due(done):
            with self._trainer.evaluation():
                self._world.in_main(lambda: watch.record(self._folder.path, done))
