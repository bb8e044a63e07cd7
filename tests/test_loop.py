"""What the training loop does when, and what of it counts as training's time, by a clock that the test turns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fastselfie.errors import LocalError
from fastselfie.randomness import Purpose, scalar_key
from fastselfie.training import checkpoint, metrics
from fastselfie.training.job import Evaluation, Job
from fastselfie.training.loop import train
from fastselfie.training.placements import PlacementRecorder
from fastselfie.training.reporter import Reporter
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.trainer import Trainer
from fastselfie.training.world import World
from tests.test_host_sync import pretraining
from tests.test_metrics import Clock

CPU = torch.device("cpu")


@dataclasses.dataclass
class Watch:
    """Looks after every odd number of steps and before the first, which takes 500 seconds."""

    job: Job
    clock: Clock
    seen: list[tuple[str, int]]

    def due(self, done: int) -> bool:
        return done == 0 or done % 2 == 1

    def cut_back(self, run: Path, done: int) -> None:
        self.seen.append(("cut back", done))

    def record(self, run: Path, done: int) -> None:
        assert not self.job.task.network.training
        self.seen.append(("watch", done))
        self.clock.now += 500


def after(action: Callable[..., object], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, before which ``action`` gets the same arguments."""

    def both(*given: Any) -> Any:
        action(*given)
        return call(*given)

    return both


def test_what_comes_when_and_what_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of two micro-batches, each of which is waited for half a second and trains for one: 8 images in 3
    seconds. Looking, evaluating and saving do not count, nor does what was before the first step."""
    clock, seen, advanced = Clock(), list[tuple[str, int]](), list[Reporter]()
    monkeypatch.setattr(metrics, "time", clock)
    job = pretraining(CPU)
    config = dataclasses.replace(job.config, log_every=2, checkpoint_every=5)

    def evaluate() -> dict[str, float]:
        assert not job.task.network.training
        assert not torch.is_grad_enabled()
        clock.now += 300
        seen.append(("evaluate", len(advanced)))
        return {"figure": 1.0}

    watch = cast(PlacementRecorder, Watch(job, clock, seen))
    job = dataclasses.replace(job, config=config, evaluations=(Evaluation(every=4, measure=evaluate),), watch=watch)

    def pass_by(seconds: float) -> None:
        clock.now += seconds

    def saving(*_: object) -> None:
        seen.append(("save", len(advanced)))
        pass_by(70)

    monkeypatch.setattr(Trainer, "settle", lambda trainer: pass_by(1000))
    monkeypatch.setattr(job.pipeline, "batch", after(lambda *_: pass_by(0.5), job.pipeline.batch))
    monkeypatch.setattr(job.task, "loss", after(lambda *_: pass_by(1), job.task.loss))
    monkeypatch.setattr(checkpoint, "save", after(saving, checkpoint.save))
    monkeypatch.setattr(Reporter, "advance", lambda reporter: advanced.append(reporter))
    train(job, World(device=CPU), RunFolder(tmp_path), "")
    assert job.task.network.training
    assert seen == [
        *[("cut back", 0), ("watch", 0), ("watch", 1), ("watch", 3), ("evaluate", 4)],
        *[("watch", 5), ("save", 5), ("evaluate", 6), ("save", 6)],
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("figure")) for line in lines] == [(2, None), (4, 1.0), (6, 1.0)]
    for line in lines:
        assert line["images_per_second"] == pytest.approx(8 / 3)
        assert line["data_wait"] == pytest.approx(1 / 3)


def test_which_part_of_a_step_is_whose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the second of two processes has entries 4 to 7 of 8, two at a time, and dropout's keys 2 and 3."""
    job = pretraining(CPU)
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, micro_batch_size=2))
    trainer = Trainer(job, World(rank=1, size=2, device=CPU), RunFolder(tmp_path))
    asked, keys = list[tuple[int, ...]](), list[int]()
    monkeypatch.setattr(job.pipeline, "batch", after(lambda *entries: asked.append(entries), job.pipeline.batch))
    monkeypatch.setattr(job.task, "loss", after(lambda *_: keys.append(torch.initial_seed()), job.task.loss))
    for step in (4, 5):
        trainer.step(step)
    assert asked == list(trainer.requests(4)) == [(36, 38), (38, 40), (44, 46), (46, 48)]
    dropout = [scalar_key(job.config.seed, Purpose.DROPOUT, step, group) for step in (4, 5) for group in (2, 3)]
    assert keys == dropout


def test_a_run_whose_evaluation_fails_goes_on_with_it(tmp_path: Path) -> None:
    """Saved before anything of that step is logged; the next run evaluates first, and goes on."""
    job, evaluated = pretraining(CPU), list[None]()

    def evaluate() -> dict[str, float]:
        evaluated.append(None)
        if len(evaluated) == 1:
            raise LocalError("a file is bad")
        return {"figure": float(len(evaluated))}

    config = dataclasses.replace(job.config, log_every=2)
    job = dataclasses.replace(job, config=config, evaluations=(Evaluation(every=4, measure=evaluate),), watch=None)
    with pytest.raises(LocalError, match="a file is bad"):
        train(job, World(device=CPU), RunFolder(tmp_path), "")
    assert checkpoint.newest_whole(tmp_path / "checkpoints", warn=print) == 4
    train(job, World(device=CPU), RunFolder(tmp_path), "")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("figure")) for line in lines] == [(2, None), (4, 2.0), (6, 3.0)]
