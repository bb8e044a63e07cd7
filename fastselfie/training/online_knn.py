"""Nearest neighbours while pretraining goes on: do the features get better? Labels are looked at, not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.config import PretrainConfig
from fastselfie.errors import UserError
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.source import AnySplit, Source
from fastselfie.pipelines.view import Batch, View
from fastselfie.pretext.task import PixelFormat
from fastselfie.randomness import epoch_order
from fastselfie.training.data import pipeline_over
from fastselfie.training.features import POOLER, TRUNK_IMAGE, Extractor, gather_features
from fastselfie.training.job import Evaluation
from fastselfie.training.neighbours import nearest_classes
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.session import count_over
from fastselfie.training.world import World

_CHUNK = 250
_METRICS = {TRUNK_IMAGE: "knn_accuracy", POOLER: "knn_accuracy_pooler"}


def check_labels(config: PretrainConfig, source: Source) -> None:
    """Refuse what nearest neighbours need and ``source`` has not.

    Raises:
        UserError: it has no labels or no test images.
    """
    lacks = "labels" if not source.classes else "val/ or test/ to ask for" if source.test is None else ""
    if config.knn_every and lacks:
        raise UserError(
            f"--knn-every {config.knn_every}: {source.name} has no {lacks}; class folders in train/ and val/ have"
            " both, or leave it out"
        )


def online_knn(
    config: PretrainConfig, world: World, network: Selfie, train: AnySplit, pixels: PixelFormat, asked: Pipeline,
    images: int, quarantine: Quarantine,
) -> Evaluation:  # fmt: skip
    """``knn_accuracy`` of the trunk on whole images and, where there is a pooler, ``knn_accuracy_pooler`` of u.

    Args:
        train: the split whose images may be neighbours, the first that training would meet. asked: a pipeline of plain
            views over ``images`` others.
    """
    labels_S, view = torch.from_numpy(train.labels_S), View.of(config, config.grid).plain()
    rows = epoch_order(config.seed, 0, len(train), config.knn_images).sort().values
    known = pipeline_over(config, world, train, rows, view, _CHUNK)
    extract = Extractor(network=network, pixels=pixels, patch=config.patch, wanted=tuple(_METRICS))
    kinds = extract.kinds

    def measure() -> dict[str, float]:
        features = gather_features(world, known, rows, labels_S, _CHUNK, extract, quarantine)
        known_SD = {kind: features.values[kind].to(world.device) for kind in kinds}
        known_labels_S = features.labels_S.to(world.device)

        def count(batch: Batch) -> Tensor:
            asked_BD = extract(batch)
            chosen = [nearest_classes(asked_BD[kind], known_SD[kind], known_labels_S) for kind in kinds]
            right = [(chosen_B == batch.labels_B).sum() for chosen_B in chosen]
            return torch.stack([*right, torch.full_like(right[0], len(batch.labels_B))])

        *right, total = count_over(world, asked, images, _CHUNK, len(kinds) + 1, count, quarantine).tolist()
        return {_METRICS[kind]: of_kind / total for kind, of_kind in zip(kinds, right, strict=True)}

    return Evaluation(every=config.knn_every, measure=measure)
