"""Which labelled images a run learns from, and which it is judged by (paper, sections 3.1 and 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastselfie.config import FinetuneConfig, label_share, require
from fastselfie.errors import UserError
from fastselfie.evaluation.subsets import held_back, labelled_subset
from fastselfie.pipelines.source import AnySplit, Source


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a run is judged by: ``rows``, int64, of ``split``. name: ``test``, or ``validation`` of labels held back."""

    split: AnySplit
    rows: Tensor
    name: Literal["test", "validation"]


def divide(config: FinetuneConfig, source: Source) -> tuple[Tensor, Judged]:
    """The labelled images to train on, int64 (n,), and what the run is judged by.

    Raises:
        UserError: the source has no labels or no test images; or so few labels that none is left to train on.
    """
    if not config.hold_back:
        test = labelled_test(source)
        rows = labelled_subset(torch.from_numpy(source.train.labels_S), label_share(config.labels), config.label_seed)
        return rows, Judged(split=test, rows=torch.arange(len(test)), name="test")
    labels_S = torch.from_numpy(labelled(source).labels_S)
    rows = labelled_subset(labels_S, label_share(config.labels), config.label_seed)
    rows, judged = held_back(labels_S, rows, config.hold_back, config.label_seed)
    require(len(rows) > 0, f"--hold-back {config.hold_back}: leaves none of {len(judged)} labels to train on")
    return rows, Judged(split=source.train, rows=judged, name="validation")


def labelled(source: Source, work: str = "finetuning") -> AnySplit:
    """The training split; ``work`` says for what. Raises `UserError` where it has no labels."""
    require(
        bool(source.classes),
        f"--data: the images of {source.name} have no labels; {work} needs class folders in train/ and val/",
    )
    return source.train


def labelled_test(source: Source, work: str = "finetuning") -> AnySplit:
    """The split to test on; ``work`` says for what.

    Raises:
        UserError: the source has no labels or no test images.
    """
    labelled(source, work)
    if source.test is None:
        raise UserError(f"--data: {source.name} has no val/ or test/ to test on; add one with the same class folders")
    return source.test
