"""A protocol's measurements made by hand, with the runs' logs that its figures read."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

from fastselfie.protocol.measured import BASE, CONTROL, Measured, Pretraining, Probed, Score, Trial

ENCODERS = ("resnet50", "resnet36-attention")
LABELS = ("2%", "5%", "8%", "20%", "100%")
SEEDS = (0, 1, 2, 3, 4)


def score(folder: Path, accuracy: float, *, seed: int = 0, pretrained: bool = True, variant: str = BASE,
          encoder: str = "resnet50", labels: str = "8%") -> Score:  # fmt: skip
    """A finished run of ``folder`` that has logged nothing."""
    run = folder / f"{variant}-{encoder}-{labels}-{seed}-{pretrained}"
    return Score(variant=variant, encoder=encoder, labels=labels, seed=seed, pretrained=pretrained, accuracy=accuracy, run=run)  # fmt: skip


def scores(folder: Path, accuracies: dict[int, float], **kind: Any) -> tuple[Score, ...]:
    """A `score` for each seed of ``accuracies``."""
    return tuple(score(folder, accuracy, seed=seed, **kind) for seed, accuracy in accuracies.items())


def measured(folder: Path, *found: Score, **changes: Any) -> Measured:
    """A protocol on CIFAR-10 with the scores ``found`` and nothing else."""
    base = Measured(
        folder=folder, recipe="cifar10", data="cifar", classes=10, asked=len(found),
        labels=tuple(dict.fromkeys(each.labels for each in found)), encoders=tuple(dict.fromkeys(each.encoder for each in found)),
        seeds=tuple(sorted({each.seed for each in found})), variants=tuple(dict.fromkeys(each.variant for each in found)),
        scores=found, pretrainings=(),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def log(run: Score, steps: int = 2_000, every: int = 100) -> None:
    """The metrics.jsonl of a run whose test accuracy ends at its score."""
    noise = random.Random(str((run.run.name)))
    run.run.mkdir(parents=True)
    lines = []
    for step in range(every, steps + 1, every):
        done = 1 - math.exp(-4 * step / steps)
        lines.append(
            {
                "step": step, "loss": 2.3 * (1 - done * (0.8 if run.pretrained else 0.9)) + noise.uniform(0, 0.08),
                "test_loss": 2.3 - done * 2.1 * run.accuracy + noise.uniform(0, 0.1),
                "test_accuracy": 0.1 + (run.accuracy - 0.1) * done / (1 - math.exp(-4)) - noise.uniform(0, 0.01),
            }
        )  # fmt: skip
    (run.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def realistic(folder: Path) -> Measured:
    """Everything that a protocol can measure, one run missing, with the logs of all finetuning runs."""
    draw = random.Random(0)
    variants = (BASE, CONTROL, "keep-0.5", "pooler-mean", "positions-query", "depth-1")
    shift = {
        BASE: 0.0,
        CONTROL: -0.011,
        "keep-0.5": 0.002,
        "pooler-mean": -0.006,
        "positions-query": 0.0,
        "depth-1": -0.003,
    }
    supervised = {"2%": 0.592, "5%": 0.757, "8%": 0.795, "20%": 0.882, "100%": 0.951}
    gains = {"2%": 0.031, "5%": 0.014, "8%": 0.011, "20%": 0.004, "100%": 0.001}
    found = []
    for encoder in ENCODERS:
        for labels in LABELS:
            for seed in SEEDS:
                level = supervised[labels] + draw.gauss(0, 0.005) + (0.004 if encoder != "resnet50" else 0)
                kind: dict[str, Any] = {"encoder": encoder, "labels": labels, "seed": seed}
                found.append(score(folder, level, pretrained=False, **kind))
                for variant in variants if labels in ("5%", "8%") and encoder == "resnet50" else (BASE,):
                    accuracy = level + gains[labels] + shift[variant] + draw.gauss(0, 0.004)
                    found.append(score(folder, accuracy, variant=variant, **kind))
    found.pop()
    for each in found:
        log(each)
    pretrainings = tuple(
        Pretraining(
            variant=variant, steps=20_000, run=folder / "pretraining" / variant, held_out_accuracy=0.71 + shift[variant],
            accuracy_shuffled=0.71 + shift[variant] - gap, context_gap=gap, gap_interval=(gap - 0.012, gap + 0.013) if gap else (0.0, 0.0),
        )
        for variant in variants
        for gap in ([0.0] if variant == CONTROL else [0.154 + 3 * shift[variant]])
    )  # fmt: skip
    probes = [
        Probed(variant=BASE, step=step, features=features, linear=low + 0.25 * (1 - math.exp(-step / 7_000)), knn=low - 0.05 + 0.2 * (1 - math.exp(-step / 7_000)))
        for step in range(0, 20_001, 2_000)
        for features, low in (("trunk, whole image", 0.42), ("trunk, per patch", 0.45), ("u", 0.38))
    ]  # fmt: skip
    probes += [dataclasses.replace(each, variant="fresh") for each in probes if each.step == 0]
    trials = [
        Trial(
            task=f"resnet50, 8%, {start}", settings={"lr": lr}, validation_accuracy=0.8 - 3 * (lr - 0.1) ** 2,
            state="pruned" if lr > 0.1 else "complete", step=400 if lr > 0.1 else 2_000, chosen=lr == 0.1,
        )
        for start in ("supervised", "pretrained")
        for lr in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
    ]  # fmt: skip
    return measured(
        folder, *found, asked=len(found) + 1, data="cifar-10-batches-py", labels=LABELS, variants=variants, pretrainings=pretrainings,
        probes=tuple(probes), trials=tuple(trials),
        settings=(("finetuning", "2,000 steps of 128 images"), ("width", "0.25"), ("device", "one H200, bf16")),
    )  # fmt: skip
