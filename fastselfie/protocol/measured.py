"""What a protocol has measured so far, as its tables and figures take it. Accuracies are shares in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BASE, CONTROL = "base", "control"
"""The recipe as asked for, and the same with ``pooler="none"``. Every other variant has a name of its own."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One finished finetuning run.

    Attributes:
        variant: whose pretrained weights, or whose way of finetuning; see `fastselfie.protocol.variants`.
        labels: as asked, such as ``8%``. seed: of the weights, order and crops.
        pretrained: or from scratch. run: its folder.
    """

    variant: str
    encoder: str
    labels: str
    seed: int
    pretrained: bool
    accuracy: float
    run: Path


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One finished pretraining run.

    Attributes:
        held_out_accuracy, accuracy_shuffled, context_gap: see `fastselfie.pretext.selfie.context_gap`; None where no
            images were held out. gap_interval: 95% over the held-out images, low and high.
    """

    variant: str
    steps: int
    run: Path
    held_out_accuracy: float | None
    accuracy_shuffled: float | None
    context_gap: float | None
    gap_interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Test accuracies of classifiers on frozen features.

    Attributes:
        variant: whose weights. step: of pretraining. features: which ones, see `fastselfie.evaluation.probe`. linear,
            knn: None where that classifier was not asked for. trained: or an untrained network of the variant's shape.
    """

    variant: str
    step: int
    features: str
    linear: float | None
    knn: float | None
    trained: bool = True


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting tried by ``--tune``, judged by accuracy on a tenth of the training labels that was held back.

    Attributes:
        task: what was tuned, such as ``resnet50, 8%, pretrained``. state: ``pruned`` was stopped early, at ``step``,
            ``diverged`` had no finite loss any more, and ``failed`` did for another reason, which ``why`` is.
    """

    task: str
    settings: dict[str, float]
    validation_accuracy: float | None
    state: Literal["complete", "pruned", "diverged", "failed"]
    step: int
    chosen: bool
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a run failed. ``run`` is its folder and ``log`` what it said, both in the protocol's folder; ``why`` its last
    line."""

    run: str
    why: str
    log: str


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What is not there because a run failed.

    Attributes:
        stage: ``pretrain``, ``probe`` or ``finetune``. variant: as of `Score`, like the others, which a finetuning run
            alone has. failure: its own, or that of a run that it needs.
    """

    stage: str
    variant: str
    failure: Failure
    encoder: str | None = None
    labels: str | None = None
    seed: int | None = None
    pretrained: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything in a protocol's folder.

    Attributes:
        folder: the protocol's ``--out``. recipe, data: as asked. classes: of the data. asked: how many finetuning runs
            were asked for; fewer `scores` mean that it is unfinished. labels, encoders, seeds, variants: as asked, in
            that order. settings: name and value of what else a reader should know, such as the finetuning's steps.
            vary_labels: whether every seed has another labelled subset. missing: what failed runs should have given.
    """

    folder: Path
    recipe: str
    data: str
    classes: int
    asked: int
    labels: tuple[str, ...]
    encoders: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    scores: tuple[Score, ...]
    pretrainings: tuple[Pretraining, ...]
    probes: tuple[Probed, ...] = ()
    trials: tuple[Trial, ...] = ()
    missing: tuple[Missing, ...] = ()
    vary_labels: bool = False
    settings: tuple[tuple[str, str], ...] = ()
