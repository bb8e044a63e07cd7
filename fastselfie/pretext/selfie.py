"""The Selfie task (paper, section 2.1): which of the masked patches belongs at each masked place?

Shapes: B images, N patches an image, m masked ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastselfie.config import PretrainConfig
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.view import Batch, View
from fastselfie.pretext.task import Loss, PixelFormat
from fastselfie.randomness import Purpose, permutations


class SelfieTask:
    """Draws each image's mask and asks the network. See `fastselfie.pretext.task.Task`."""

    def __init__(self, config: PretrainConfig, network: Selfie, pixels: PixelFormat) -> None:
        self.network = network
        self.view = View.of(config, config.grid)
        self._config, self._pixels = config, pixels

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Loss:
        """Loss and accuracy over the B * m questions of a batch."""
        patches, places_BN = self._question(batch)
        loss, right = forward(patches, places_BN)
        return Loss(value=loss, metrics={"accuracy": right / self._questions(batch)})

    @torch.no_grad()
    def context_counts(self, batch: Batch) -> Tensor:
        """Right answers with each image's own u, right answers with another image's u, questions, images, and the
        squares of the images' differences between the first two, added up: int64 (5,)."""
        patches, places_BN = self._question(batch)
        u_BD, h_BmD = self.network.encode(patches, places_BN)
        right_B = self.network.right_answers(u_BD, h_BmD, places_BN)
        shuffled_B = self.network.right_answers(u_BD.roll(1, dims=0), h_BmD, places_BN)
        right, squares = right_B.sum(), (right_B - shuffled_B).square().sum()
        asked = torch.full_like(right, self._questions(batch))
        return torch.stack([right, shuffled_B.sum(), asked, torch.full_like(right, len(right_B)), squares])

    @torch.no_grad()
    def placements(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The masked places, and of each the place that the patch comes from which the network puts there.

        Returns:
            places, chosen: int64 (B, m) each, row by row in the grid; right where they are equal.
        """
        patches, places_BN = self._question(batch)
        places_Bm = places_BN[:, self._config.visible :]
        return places_Bm, places_Bm.gather(1, self.network.place(patches, places_BN))

    def _question(self, batch: Batch) -> tuple[Tensor, Tensor]:
        config, pixels, places_BN = self._config, self._pixels, self._places(batch)
        patches = batch.patches(
            patch=config.patch, mean=pixels.mean, std=pixels.std, dtype=pixels.dtype, places_BN=places_BN
        )
        return patches, places_BN

    def _places(self, batch: Batch) -> Tensor:
        """The order of the places in each image, visible ones first: int64 (B, N)."""
        config, purpose, epoch_B, sample_B = self._config, Purpose.MASK, batch.epoch_B, batch.sample_B
        if config.masks == "batch" and batch.entry is not None:
            # Keyed by the step alone: the same in every row, process and micro-batch.
            step = batch.entry // config.batch_size
            purpose, epoch_B, sample_B = Purpose.BATCH_MASK, torch.zeros_like(epoch_B), torch.full_like(sample_B, step)
        return permutations(config.seed, purpose, epoch_B, sample_B, config.patches)

    def _questions(self, batch: Batch) -> int:
        return len(batch.sample_B) * (self._config.patches - self._config.visible)


def context_gap(counts: Tensor) -> dict[str, float]:
    """The control that every accuracy needs (design, section 2), from summed `SelfieTask.context_counts`.

    Returns:
        ``held_out_accuracy``, ``accuracy_shuffled`` (u taken from another image) and ``context_gap``, their difference.
    """
    right, right_shuffled, questions = counts[:3].tolist()
    own, shuffled = right / questions, right_shuffled / questions
    return {"held_out_accuracy": own, "accuracy_shuffled": shuffled, "context_gap": own - shuffled}


def context_gap_interval(counts: Tensor) -> dict[str, float]:
    """The gap's 95% confidence interval over the images that it was measured on, paired within the image: Student's t
    of the mean of (right answers with its own u - with another's) / m. It says nothing of other seeds.

    Returns:
        ``context_gap_low`` and ``context_gap_high``; nothing of a single image, which has no spread.
    """
    from scipy.special import stdtrit  # a quarter of a second, and only where something is held out

    right, right_shuffled, questions, images, squares = counts.tolist()
    if images < 2:
        return {}
    difference = right - right_shuffled
    spread = images * squares - difference**2  # in integers, so that equal images have none: n * (n - 1) variances
    error = math.sqrt(spread / (images - 1)) / questions  # of the mean: questions is n * m
    margin = float(stdtrit(images - 1, 0.975)) * error
    gap = context_gap(counts)["context_gap"]
    return {"context_gap_low": gap - margin, "context_gap_high": gap + margin}
