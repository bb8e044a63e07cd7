"""The paper's evaluation (sections 3 and 4) from one command: pretrain, finetune, tabulate; resumed at any point."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from fastselfie.config import require
from fastselfie.errors import UserError
from fastselfie.evaluation.labels import divide, labelled_test
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.sources import fetch, open_source
from fastselfie.protocol import probing, record
from fastselfie.protocol.claim import claimed, facts_of
from fastselfie.protocol.leftovers import wait_for_leftovers
from fastselfie.protocol.measured import Failure
from fastselfie.protocol.page import write_report
from fastselfie.protocol.places import places
from fastselfie.protocol.plan import HELD_BACK, PRETRAINED, Planner, Point
from fastselfie.protocol.progress import Progress
from fastselfie.protocol.runner import IN_A_ROW, Runner
from fastselfie.protocol.settings import Asked
from fastselfie.protocol.tune import Tuning, grid
from fastselfie.protocol.work import Work
from fastselfie.training.data import check_loading
from fastselfie.training.hardware import choose_device
from fastselfie.training.reporter import say

PAGE = "report.html"


def protocol(asked: Asked) -> Path:
    """Make every run that is asked for and not done yet, and write tables, figures and page.

    Returns:
        The protocol's folder.

    Raises:
        UserError: something asked for makes no sense, or runs failed: what does not need them is done then, and
            written. Stopped: a signal came; all runs are saved.
    """
    require(
        os.environ.get("WORLD_SIZE", "1") == "1",
        "fastselfie protocol: starts its runs itself, several side by side; start it without torchrun",
    )
    folder = asked.protocol.out or Path("runs") / f"{asked.protocol.recipe}-protocol"
    device = choose_device(asked.finetune.device).value
    source = _source(asked, folder)
    planner = Planner(asked, folder)
    planner.check_said()
    kinds = planner.kinds()
    for kind in kinds:  # what makes no sense together is refused here, before anything is written
        planner.finetuning(kind, 0)
        for point in grid(asked, kind.start) if asked.protocol.tune else [Point()]:
            if kind.start == PRETRAINED:
                planner.probes(kind.variant, point)
    tuning = Tuning(asked, planner) if asked.protocol.tune else None
    runner = Runner(places(device, asked.protocol.jobs), folder / "logs", Progress())
    with claimed(planner, len(source.classes), facts_of(asked, source)):
        for name, why in planner.left_out.items():
            say(f"--variants all: without {name} ({why})")
        if checkpoints := probing.told(asked):
            say(checkpoints)
        wait_for_leftovers(folder)
        work = Work(planner, tuning, runner.failures)
        if tuning is None:
            runner.run(work.tasks, late=work.before)
        else:
            runner.run(work.tasks, tuning.hopeless, tuning.diverged, late=work.before)
        write_report(record.read_protocol(folder), folder / PAGE)
    if work.failures:
        raise UserError(_failed(folder, list(work.failures.values()), runner.gave_up))
    say(f"{folder}: done; {PAGE}, tables/ and figures/ are written")
    return folder


def _failed(folder: Path, failures: Sequence[Failure], gave_up: bool) -> str:
    first = failures[0]
    number = "1 run" if len(failures) == 1 else f"{len(failures)} runs"
    rest = f"no more were started after {IN_A_ROW} in a row" if gave_up else "what does not need them is done"
    return (
        f"{folder}: {number} failed, and {rest}; the first is {first.run}: {first.why}; its log is"
        f" {folder / first.log}; {PAGE} says what is missing, and the same command tries again"
    )


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
