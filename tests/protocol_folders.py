"""A protocol's measurements made by hand, with the runs' logs that its figures read."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastselfie.protocol.measured import BASE, CONTROL, Measured, Pretraining, Probed, Score, Trial

ENCODERS = ("resnet50", "resnet36-attention")
# What each variant is to lose against the base.
LOSSES = {BASE: 0.0, CONTROL: 0.011, "keep-0.5": -0.002, "pooler-mean": 0.006, "positions-query": 0.0, "depth-1": 0.003}
SUPERVISED = {"2%": 0.592, "5%": 0.757, "8%": 0.795, "20%": 0.882, "100%": 0.951}
GAINS = {"2%": 0.031, "5%": 0.014, "8%": 0.011, "20%": 0.004, "100%": 0.001}


def score(folder: Path, accuracy: float, *, seed: int = 0, pretrained: bool = True, variant: str = BASE,
          encoder: str = "resnet50", labels: str = "8%") -> Score:  # fmt: skip
    """A finished run of ``folder`` that has logged nothing."""
    kind: dict[str, Any] = {"variant": variant, "encoder": encoder, "labels": labels, "seed": seed}
    run = folder / "-".join((*map(str, kind.values()), "pretrained" if pretrained else "scratch"))
    return Score(pretrained=pretrained, accuracy=accuracy, run=run, **kind)


def scores(folder: Path, accuracies: dict[int, float], **kind: Any) -> tuple[Score, ...]:
    """A `score` for each seed of ``accuracies``."""
    return tuple(score(folder, accuracy, seed=seed, **kind) for seed, accuracy in accuracies.items())


def measured(folder: Path, *found: Score, **changes: Any) -> Measured:
    """A protocol on CIFAR-10 with the scores ``found`` and nothing else but ``changes``."""
    base = Measured(
        folder=folder, recipe="cifar10", data="cifar", classes=10, asked=len(found),
        labels=_each(s.labels for s in found), encoders=_each(s.encoder for s in found),
        seeds=tuple(sorted({s.seed for s in found})), variants=_each(s.variant for s in found), scores=found,
        pretrainings=(),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def pretraining(folder: Path, variant: str = BASE, accuracy: float = 0.7, gap: float = 0.15) -> Pretraining:
    """A finished one with an interval of its gap from 0.01 below to 0.02 above."""
    return Pretraining(
        variant=variant, steps=20_000, run=folder / variant, held_out_accuracy=accuracy,
        accuracy_shuffled=accuracy - gap, context_gap=gap, gap_interval=(gap - 0.01, gap + 0.02) if gap else (0.0, 0.0),
    )  # fmt: skip


def log(run: Score, steps: int = 2_000, every: int = 100) -> None:
    """The metrics.jsonl of a run whose test accuracy ends near its score."""
    noise, lines = random.Random(run.run.name), []
    for step in range(every, steps + 1, every):
        done = 1 - math.exp(-4 * step / steps)
        loss = 2.3 * (1 - done * (0.8 if run.pretrained else 0.9)) + noise.uniform(0, 0.08)
        test_loss = 2.3 - done * 2.1 * run.accuracy + noise.uniform(0, 0.1)
        accuracy = 0.1 + (run.accuracy - 0.1) * done / (1 - math.exp(-4)) - noise.uniform(0, 0.01)
        lines.append({"step": step, "loss": loss, "test_loss": test_loss, "test_accuracy": accuracy})
    write_log(run, lines)


def write_log(run: Score, lines: Iterable[dict[str, float]]) -> None:
    """Its metrics.jsonl with ``lines``."""
    run.run.mkdir(parents=True)
    (run.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def realistic(
    folder: Path, labels: tuple[str, ...] = tuple(SUPERVISED), seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
) -> Measured:
    """Everything that a protocol can measure, the last run missing, with the logs of all finetuning runs."""
    draw, found = random.Random(0), []
    for encoder in ENCODERS:
        for share in labels:
            for seed in seeds:
                level = SUPERVISED[share] + draw.gauss(0, 0.005)
                kind: dict[str, Any] = {"encoder": encoder, "labels": share, "seed": seed}
                found.append(score(folder, level, pretrained=False, **kind))
                ablated = share in ("5%", "8%") and encoder == "resnet50"
                for variant in LOSSES if ablated else (BASE,):
                    accuracy = level + GAINS[share] - LOSSES[variant] + draw.gauss(0, 0.004)
                    found.append(score(folder, accuracy, variant=variant, **kind))
    found.pop()
    for each in found:
        log(each)
    return measured(
        folder, *found, asked=len(found) + 1, data="cifar-10-batches-py", variants=tuple(LOSSES),
        pretrainings=tuple(
            pretraining(folder, variant, 0.71 - loss, 0.0 if variant == CONTROL else 0.15 - loss)
            for variant, loss in LOSSES.items()
        ),
        probes=_probes(), trials=_trials(), settings=(("finetuning", "2,000 steps of 128 images"), ("width", "0.25")),
    )  # fmt: skip


def _probes() -> tuple[Probed, ...]:
    found = []
    for step in range(0, 20_001, 4_000):
        learned = 1 - math.exp(-step / 7_000)
        for features, low in (("trunk, whole image", 0.42), ("trunk, per patch", 0.45), ("u", 0.38)):
            knn, linear = low - 0.05 + 0.2 * learned, low + 0.25 * learned
            found.append(Probed(variant=BASE, step=step, features=features, linear=linear, knn=knn))
    return (*found, *(dataclasses.replace(each, trained=False) for each in found if each.step == 0))


def _trials() -> tuple[Trial, ...]:
    return tuple(
        Trial(
            task=f"resnet50, 8%, {start}", settings={"lr": lr}, validation_accuracy=0.8 - 3 * (lr - 0.1) ** 2,
            state="pruned" if lr > 0.1 else "complete", step=400 if lr > 0.1 else 2_000, chosen=lr == 0.1,
        )
        for start in ("supervised", "pretrained")
        for lr in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
    )  # fmt: skip


def _each(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
