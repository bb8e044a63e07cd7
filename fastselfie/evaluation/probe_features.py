"""The features that a probe classifies: of the labelled images and of the test images, through a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastselfie.config import PretrainConfig, require
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.source import AnySplit
from fastselfie.pipelines.view import View
from fastselfie.pretext.task import PixelFormat
from fastselfie.progress import meter
from fastselfie.randomness import epoch_order
from fastselfie.training.data import pipeline_over
from fastselfie.training.features import (
    KINDS,
    Extractor,
    Features,
    estimate_statistics,
    gather_features,
    with_statistics,
)
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.session import turns
from fastselfie.training.world import World
from fastselfie.training.wrapping import autocast

STATISTICS_IMAGES = 5_000
"""Labelled images that batch-norm statistics are taken of, at most."""


@dataclass(frozen=True, kw_only=True)
class ProbedImages:
    """Plain views of the images of a probe.

    Attributes:
        run: the network's settings, with this machine's. rows: int64, those of ``train`` that are labelled.
    """

    run: PretrainConfig
    world: World
    train: AnySplit
    rows: Tensor
    test: AnySplit
    quarantine: Quarantine

    def features(self, network: Selfie, patch_statistics: bool) -> tuple[Features, Features]:
        """Of the labelled images and of the test images.

        Args:
            network: in evaluation mode. patch_statistics: give its trunk statistics of patches first.

        Raises:
            UserError: features are not finite. LocalError: too many images cannot be used.
        """
        run, world = self.run, self.world
        pixels = PixelFormat.of(run, world.device)
        plain = Extractor(network=network, pixels=pixels, patch=run.patch)
        with torch.no_grad(), autocast(run):
            if patch_statistics:
                estimate_statistics(network.trunk, self._some(plain.patches))
            renormed = with_statistics(network.trunk, self._some(plain.whole))
            extract = Extractor(network=network, pixels=pixels, patch=run.patch, renormed=renormed)
            train, test = self._of(self.train, self.rows, extract), self._of(self.test, None, extract)
        finite = all(bool(values.isfinite().all()) for part in (train, test) for values in part.values.values())
        require(finite, "--from: the network's features are not finite; pretrain with a smaller --lr")
        return train, test

    def features_mib(self, network: Selfie) -> float:
        """Memory of all that `features` returns."""
        kinds = len(KINDS) - (network.pooler is None)
        return kinds * (len(self.rows) + len(self.test)) * network.trunk.features * 4 / 2**20

    def _some(self, cut: Callable[..., Tensor]) -> Iterator[Tensor]:
        """Labelled images in a random order, in batches as ``cut`` makes them."""
        rows = self.rows[epoch_order(self.run.seed, 0, len(self.rows), STATISTICS_IMAGES)]
        for batch in self._pipeline(self.train, rows).in_order(turns(self.world, len(rows), self.run.batch_size)):
            self.quarantine.note(batch.refused)
            if len(batch.sample_B):
                yield cut(batch)

    def _of(self, split: AnySplit, rows: Tensor | None, extract: Extractor) -> Features:
        labels_S, rows = torch.from_numpy(split.labels_S), torch.arange(len(split)) if rows is None else rows
        with meter("features", len(rows)) as done:
            return gather_features(
                self.world, self._pipeline(split, rows), rows, labels_S, self.run.batch_size, extract, self.quarantine,
                done.advance,
            )  # fmt: skip

    def _pipeline(self, split: AnySplit, rows: Tensor) -> Pipeline:
        view = View.of(self.run, self.run.grid).plain()
        return pipeline_over(self.run, self.world, split, rows, view, self.run.batch_size)
