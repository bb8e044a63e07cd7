"""The paper's evaluation (sections 3 and 4) from one command: pretrain, finetune, tabulate; resumed at any point."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastselfie.config import label_share, require
from fastselfie.evaluation.labels import labelled_test
from fastselfie.pipelines.sources import fetch, open_source
from fastselfie.protocol import record
from fastselfie.protocol.page import write_report
from fastselfie.protocol.places import places
from fastselfie.protocol.plan import PRETRAINED, Kind, Planner, Point
from fastselfie.protocol.progress import Progress
from fastselfie.protocol.runner import Runner
from fastselfie.protocol.settings import Asked
from fastselfie.protocol.task import Task
from fastselfie.protocol.tune import Tuning
from fastselfie.training.hardware import choose_device
from fastselfie.training.reporter import say

PAGE = "report.html"


def protocol(asked: Asked) -> Path:
    """Make every run that is asked for and not done yet, and write tables, figures and page.

    Returns:
        The protocol's folder.

    Raises:
        UserError: something asked for makes no sense, or a run failed. Stopped: a signal came; all runs are saved.
    """
    folder = asked.protocol.out or Path("runs") / f"{asked.protocol.recipe}-protocol"
    device = choose_device(asked.finetune.device).value
    classes = _classes(asked, folder)
    planner = Planner(asked, folder)
    kinds = planner.kinds()
    for kind in kinds:  # what makes no sense together is refused here, before anything is written
        planner.finetuning(kind, 0)
    tuning = Tuning(asked, planner) if asked.protocol.tune else None
    record.claim(folder, asked, classes)
    runner = Runner(places(device, asked.protocol.jobs), folder / "logs", Progress())
    work = _Work(asked, planner, tuning)
    if tuning is None:
        runner.run(work.tasks)
    else:
        runner.run(work.tasks, tuning.hopeless, tuning.diverged)
    write_report(record.read_protocol(folder), folder / PAGE)
    say(f"{folder}: done; {PAGE}, tables/ and figures/ are written")
    return folder


class _Work:
    """What there is to do, which grows while settings are chosen: of a kind that is decided, one seed after another."""

    def __init__(self, asked: Asked, planner: Planner, tuning: Tuning | None) -> None:
        self._asked, self._planner, self._tuning = asked, planner, tuning

    def tasks(self) -> list[Task]:
        """Every task that can be named so far; which folder answers what is put down."""
        points = {
            kind: self._tuning.chosen(kind) if self._tuning else Point()
            for kind in self._planner.kinds()
            if self._tuning is None or self._tuning.decided(kind)
        }
        runs = [
            (kind, seed, self._planner.finetuning(kind, seed, point))
            for seed in range(self._asked.protocol.seeds)
            for kind, point in points.items()
        ]
        pretrained = {kind.variant: point for kind, point in points.items() if kind.start == PRETRAINED}
        probes = [
            (variant, task) for variant, point in pretrained.items() for task in self._planner.probes(variant, point)
        ]
        record.note(
            self._planner.folder, runs=runs, pretrainings=self._pretrainings(points), probes=probes,
            trials=self._tuning.told() if self._tuning else (),
        )  # fmt: skip
        # A probe takes long and needs one core: last, it would keep the others waiting.
        named = [*(self._tuning.tasks() if self._tuning else ()), *(task for _, task in probes)]
        named += [task for _, _, task in runs]
        needed = {task.needs.name: task.needs for task in named if task.needs is not None}
        return list({task.name: task for task in (*needed.values(), *named)}.values())

    def _pretrainings(self, points: dict[Kind, Point]) -> dict[tuple[str, Path], None]:
        """Which pretraining runs a variant has, more than one where the share that is seen was tuned."""
        found: dict[tuple[str, Path], None] = {}
        for kind, point in points.items():
            if kind.start == PRETRAINED:
                task = self._planner.pretraining(kind.variant, point)
                folder = self._asked.protocol.pretrained if task is None else task.folder
                assert folder is not None
                found[kind.variant, folder] = None
        return found


def _classes(asked: Asked, folder: Path) -> int:
    """How many there are. Raises `UserError` where the data have no labels or test images, or too few of them."""
    config = asked.finetune
    fetch(asked.protocol.data, config.image_size)
    source = open_source(asked.protocol.data, config.image_size, config.index or folder.parent / ".index")
    labelled_test(source)
    smallest = min(map(label_share, asked.protocol.label_shares))
    fewest = int(np.bincount(source.train.labels_S, minlength=len(source.classes)).sum() * smallest)
    require(
        fewest * (0.9 if asked.protocol.tune else 1) >= config.batch_size,
        f"--labels {asked.protocol.label_shares[0]}: makes {fewest} images to train on, fewer than"
        f" --finetune.batch-size {config.batch_size}; take a larger share or a smaller batch",
    )
    return len(source.classes)
