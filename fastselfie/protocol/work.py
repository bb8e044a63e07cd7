"""What a protocol has to do, which grows while settings are chosen, and what of it is missing because a run failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fastselfie.protocol import record
from fastselfie.protocol.measured import Failure, Missing
from fastselfie.protocol.plan import PRETRAINED, Kind, Planner, Point
from fastselfie.protocol.task import RunTask
from fastselfie.protocol.tune import Tuning


class Work:
    """Tasks by what is done so far, put down in the protocol's record whenever they are asked for.

    Attributes:
        failures: of tasks that are not done, by name: how each failed last, first what failed now.
    """

    def __init__(self, planner: Planner, tuning: Tuning | None, failed_now: Mapping[str, Failure]) -> None:
        """Args: failed_now: of this command, which its runner adds to."""
        self._planner, self._tuning, self._now = planner, tuning, failed_now
        self.before = {failure.run: failure for failure in record.noted_failures(planner.folder)}
        self.failures: dict[str, Failure] = {}

    def tasks(self) -> list[RunTask]:
        """Every task that can be named so far, of a kind that is decided one seed after another; which folder answers
        what is put down."""
        points = {
            kind: self._tuning.chosen(kind) if self._tuning else Point()
            for kind in self._planner.kinds()
            if self._tuning is None or self._tuning.decided(kind)
        }
        seeds = range(self._planner.asked.protocol.seeds)
        runs = [
            (kind, seed, self._planner.finetuning(kind, seed, point))
            for seed in seeds
            for kind, point in points.items()
        ]
        pretrained = {kind.variant: point for kind, point in points.items() if kind.start == PRETRAINED}
        probes = [
            (variant, task) for variant, point in pretrained.items() for task in self._planner.probes(variant, point)
        ]
        # A probe takes long and needs one core: last, it would keep the others waiting.
        named = [*(self._tuning.tasks() if self._tuning else ()), *(task for _, task in probes)]
        named += [task for _, _, task in runs]
        needed = {task.needs.name: task.needs for task in named if task.needs is not None}
        tasks = list({task.name: task for task in (*needed.values(), *named)}.values())
        self._look_for_failures(tasks)
        pretrainings = self._pretrainings(points)
        record.note(
            self._planner.folder, runs=runs, pretrainings=[(variant, path) for variant, path, _ in pretrainings],
            probes=probes, trials=self._tuning.told(self.failures) if self._tuning else (),
            failures=self.failures.values(), missing=self._missing(points, runs, pretrainings, probes),
        )  # fmt: skip
        return tasks

    def _look_for_failures(self, tasks: Iterable[RunTask]) -> None:
        known = {**self._now, **{name: failure for name, failure in self.before.items() if name not in self._now}}
        undone = {task.name for task in tasks if not task.done}
        self.failures = {name: failure for name, failure in known.items() if name in undone}
        if self._tuning is not None:
            self.failures |= {failure.run: failure for failure in self._tuning.without_choice().values()}

    def _pretrainings(self, points: Mapping[Kind, Point]) -> list[tuple[str, Path, RunTask | None]]:
        """Which pretraining runs a variant has, more than one where the share that is seen was tuned; None for the
        task of one that was given."""
        found: dict[tuple[str, Path], RunTask | None] = {}
        for kind, point in points.items():
            if kind.start == PRETRAINED:
                task = self._planner.pretraining(kind.variant, point)
                folder = self._planner.asked.protocol.pretrained if task is None else task.folder
                assert folder is not None
                found[kind.variant, folder] = task
        return [(variant, folder, task) for (variant, folder), task in found.items()]

    def _missing(
        self, points: Mapping[Kind, Point], runs: Iterable[tuple[Kind, int, RunTask]],
        pretrainings: Iterable[tuple[str, Path, RunTask | None]], probes: Iterable[tuple[str, RunTask]],
    ) -> Iterable[Missing]:  # fmt: skip
        """What is not there because a run failed, be it one that another needs."""
        for variant, _, pretraining in pretrainings:
            if pretraining is not None and (failure := self._failure(pretraining)):
                yield Missing(stage="pretrain", variant=variant, failure=failure)
        for variant, probe in probes:
            if failure := self._failure(probe):
                yield Missing(stage="probe", variant=variant, failure=failure)
        for kind, seed, task in runs:
            if failure := self._failure(task):
                yield _missing_run(kind, seed, failure)
        for kind in self._planner.kinds():
            if kind not in points and (failure := self._undecided(kind)):
                for seed in range(self._planner.asked.protocol.seeds):
                    yield _missing_run(kind, seed, failure)

    def _failure(self, task: RunTask) -> Failure | None:
        """Why a task is not done, None where it is or may come to be."""
        if task.done:
            return None
        return self.failures.get(task.name) or (self._failure(task.needs) if task.needs is not None else None)

    def _undecided(self, kind: Kind) -> Failure | None:
        """Why no settings can be chosen for ``kind``."""
        assert self._tuning is not None
        trials = [self._failure(trial) for trial in self._tuning.trials_of(kind)]
        return self._tuning.without_choice().get(kind.base) or next(filter(None, trials), None)


def _missing_run(kind: Kind, seed: int, failure: Failure) -> Missing:
    return Missing(
        stage="finetune", variant=kind.variant, encoder=kind.encoder, labels=kind.labels, seed=seed,
        pretrained=kind.start == PRETRAINED, failure=failure,
    )  # fmt: skip
