"""Settings by the paper's rule (section 3.2): tried on 90% of the labels, judged by the other 10%, never by the test.

A trial is a finetuning run of its own; what it came to lies in its folder, so that nothing is tried twice. Optuna's
median rule stops a trial that from half of its steps on is behind the median of those before it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastselfie.errors import UserError
from fastselfie.protocol.measured import Failure, Trial
from fastselfie.protocol.plan import SCRATCH, Kind, Planner, Point
from fastselfie.protocol.settings import Asked, numbers
from fastselfie.protocol.task import PRUNED, RunTask, read_object

JUDGED = "validation_accuracy"
DIVERGED = re.compile(r"the loss is (?:nan|-?inf) at step ([0-9]+)")
"""What `fastselfie.training.observer.Observer` refuses to go on with."""
_BEFORE_ANY_IS_STOPPED = 2  # trials that a median needs


class Tuning:
    """The trials of a protocol. Ablations take what was chosen for their base."""

    def __init__(self, asked: Asked, planner: Planner) -> None:
        self.trials: dict[Kind, dict[Point, RunTask]] = {}
        for kind in planner.kinds():
            if kind.base not in self.trials:
                points = grid(asked, kind.start)
                self.trials[kind.base] = {p: planner.finetuning(kind.base, 0, p, tuning=True) for p in points}
        self._siblings = {
            task.name: list(points.values()) for points in self.trials.values() for task in points.values()
        }
        self._looked: dict[str, int] = {}
        self._optuna = _optuna()

    def tasks(self) -> list[RunTask]:
        """Every trial, with the pretraining runs that they need in front."""
        trials = [task for points in self.trials.values() for task in points.values()]
        needed = {task.needs.name: task.needs for task in trials if task.needs is not None}
        return [*needed.values(), *trials]

    def hopeless(self, task: RunTask) -> dict[str, float] | None:
        """Why a running trial may be stopped; None while it may not. See `Runner.run`.

        The study is made anew from the completed trials' folders, so that nothing has to be kept beside them.
        """
        judged = _judged(task) if task.name in self._siblings else []
        if len(judged) <= self._looked.get(task.name, 0):
            return None
        self._looked[task.name] = len(judged)
        pruner = self._optuna.pruners.MedianPruner(
            n_startup_trials=_BEFORE_ANY_IS_STOPPED, n_warmup_steps=task.steps // 2
        )
        study = self._optuna.create_study(direction="maximize", pruner=pruner)
        for other in self._siblings[task.name]:
            score = accuracy(other)
            if score is not None:
                values = dict(_judged(other))
                study.add_trial(self._optuna.trial.create_trial(value=score, intermediate_values=values))
        trial = study.ask()
        for step, value in judged:
            trial.report(value, step)
        return {"step": judged[-1][0], JUDGED: judged[-1][1]} if trial.should_prune() else None

    def diverged(self, task: RunTask, words: str) -> dict[str, float] | None:
        """What is kept of a trial that failed with those last words because its rate is too high; None of any other.

        A grid is there to find that out, and the other trials go on.
        """
        if task.name not in self._siblings or not (found := DIVERGED.search(words)):
            return None
        return {"step": int(found[1])}

    def trials_of(self, kind: Kind) -> list[RunTask]:
        """Every trial by which the settings of ``kind`` are chosen."""
        return list(self.trials[kind.base].values())

    def decided(self, kind: Kind) -> bool:
        """Whether all trials of a kind are done, and one of them can be chosen."""
        trials = self.trials_of(kind)
        return all(task.done for task in trials) and any(accuracy(task) is not None for task in trials)

    def without_choice(self) -> dict[Kind, Failure]:
        """Kinds of the base whose trials have all diverged."""
        return {
            kind: Failure(
                run=f"tune/{kind.variant}/{kind.name}",
                why="the loss of every trial diverged; take another --out and lower --learning-rates",
                log="logs",
            )
            for kind in self.trials
            if all(task.done for task in self.trials_of(kind)) and not self.decided(kind)
        }

    def chosen(self, kind: Kind) -> Point:
        """The point whose trial came out best; of equals the first of the grid. Call once it is `decided`."""
        scores = {point: accuracy(task) for point, task in self.trials[kind.base].items()}
        complete = {point: score for point, score in scores.items() if score is not None}
        return max(complete, key=lambda point: complete[point])

    def told(self, failures: Mapping[str, Failure] | None = None) -> list[Trial]:
        """All trials that are done or among ``failures``, which are by name, for the tables."""
        found = []
        for kind, points in self.trials.items():
            best = self.chosen(kind) if self.decided(kind) else None
            for point, task in points.items():
                failure = (failures or {}).get(task.name)
                if task.done or failure is not None:
                    found.append(_trial(kind, point, task, failure, chosen=point == best))
        return found


def _trial(kind: Kind, point: Point, task: RunTask, failure: Failure | None, *, chosen: bool) -> Trial:
    told: dict[str, Any] = {"state": "complete", "validation_accuracy": accuracy(task), "step": task.steps}
    if failure is not None:
        told |= {"state": "failed", "step": 0, "why": f"{failure.why}; its log is {failure.log}"}
    elif told["validation_accuracy"] is None:
        stopped = read_object(task.folder / PRUNED)
        state = "pruned" if JUDGED in stopped else "diverged"
        told = {"state": state, "validation_accuracy": stopped.get(JUDGED), "step": int(stopped["step"])}
    return Trial(
        task=f"{kind.encoder}, {kind.labels}, {kind.start}", chosen=chosen,
        settings=point.chosen, **told,
    )  # fmt: skip


def grid(asked: Asked, start: str) -> list[Point]:
    """What is tried for a run from scratch, or for one from pretrained weights: the first is what recipes have."""
    protocol = asked.protocol
    lrs = numbers("--learning-rates", protocol.learning_rates)
    if start == SCRATCH or protocol.pretrained is not None:
        return [Point(lr=lr) for lr in lrs]
    keeps = numbers("--keeps", protocol.keeps)[::-1]
    rates: Sequence[float | None] = numbers("--pretrain-learning-rates", protocol.pretrain_learning_rates) or [None]
    return [Point(keep=keep, pretrain_lr=rate, lr=lr) for keep, rate, lr in itertools.product(keeps, rates, lrs)]


def accuracy(task: RunTask) -> float | None:
    """What a completed trial was judged by; None of one that was stopped early."""
    return float(task.result()[JUDGED]) if task.done and not (task.folder / PRUNED).exists() else None


def _judged(task: RunTask) -> list[tuple[int, float]]:
    return [(int(line["step"]), float(line[JUDGED])) for line in task.lines() if JUDGED in line]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("--tune: needs Optuna; pip install 'fastselfie[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
