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
    if tuning is not None:
        runner.run(tuning.tasks(), tuning.hopeless)
    points = {kind: tuning.chosen(kind) if tuning else Point() for kind in kinds}
    _make(asked, planner, runner, points, tuning)
    write_report(record.read_protocol(folder), folder / PAGE)
    say(f"{folder}: done; {PAGE}, tables/ and figures/ are written")
    return folder


def _make(asked: Asked, planner: Planner, runner: Runner, points: dict[Kind, Point], tuning: Tuning | None) -> None:
    """All runs that are asked for, with settings as chosen: one seed of everything first, then the next."""
    runs = [
        (kind, seed, planner.finetuning(kind, seed, point))
        for seed in range(asked.protocol.seeds)
        for kind, point in points.items()
    ]
    pretrainings: dict[str, Task] = {}
    of_variant: dict[tuple[str, Path], None] = {}
    for kind, point in points.items():
        if kind.start == PRETRAINED:
            task = planner.pretraining(kind.variant, point)
            folder = asked.protocol.pretrained
            if task is not None:
                pretrainings[task.name], folder = task, task.folder
            assert folder is not None
            of_variant[kind.variant, folder] = None
    probes = {}
    if asked.protocol.probe:
        for kind, point in points.items():
            if kind.start == PRETRAINED and kind.variant not in probes:
                probes[kind.variant] = planner.probe(kind.variant, point)
    record.note(
        planner.folder, runs=runs, pretrainings=of_variant, probes=probes.items(),
        trials=tuning.told() if tuning else (),
    )  # fmt: skip
    unique = {task.name: task for task in (*pretrainings.values(), *(task for _, _, task in runs), *probes.values())}
    runner.run(list(unique.values()))


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
