"""The paper's evaluation (sections 3 and 4) from one command: pretrain, finetune, tabulate; resumed at any point."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fastselfie.config import require
from fastselfie.evaluation.labels import divide, labelled_test
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.sources import fetch, open_source
from fastselfie.protocol import record
from fastselfie.protocol.claim import claimed, facts_of
from fastselfie.protocol.page import write_report
from fastselfie.protocol.places import places
from fastselfie.protocol.plan import HELD_BACK, PRETRAINED, Kind, Planner, Point
from fastselfie.protocol.progress import Progress
from fastselfie.protocol.runner import Runner
from fastselfie.protocol.settings import Asked
from fastselfie.protocol.task import Task
from fastselfie.protocol.tune import Tuning, grid
from fastselfie.training.data import check_loading
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
    source = _source(asked, folder)
    planner = Planner(asked, folder)
    kinds = planner.kinds()
    for kind in kinds:  # what makes no sense together is refused here, before anything is written
        planner.finetuning(kind, 0)
        for point in grid(asked, kind.start) if asked.protocol.tune else [Point()]:
            if kind.start == PRETRAINED:
                planner.probes(kind.variant, point)
    tuning = Tuning(asked, planner) if asked.protocol.tune else None
    runner = Runner(places(device, asked.protocol.jobs), folder / "logs", Progress())
    work = _Work(asked, planner, tuning)
    with claimed(planner, len(source.classes), facts_of(asked, source)):
        for name, why in planner.left_out.items():
            say(f"--variants all: without {name} ({why})")
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


def _source(asked: Asked, folder: Path) -> Source:
    """The images. Raises `UserError` where they have no labels or no test images, or too few of them."""
    config, protocol = asked.finetune, asked.protocol
    fetch(protocol.data, config.image_size)
    source = open_source(protocol.data, config.image_size, config.index or folder.parent / ".index")
    for stage in (asked.pretrain, asked.finetune):
        check_loading(stage, source)
    labelled_test(source)
    smallest, hold_back = protocol.label_shares[0], HELD_BACK if protocol.tune else 0.0
    rows, _ = divide(dataclasses.replace(config, labels=smallest, hold_back=hold_back), source)
    require(
        len(rows) >= config.batch_size,
        f"--labels {smallest}: makes {len(rows)} images to train on, fewer than"
        f" --finetune.batch-size {config.batch_size}; take a larger share or a smaller batch",
    )
    return source
