"""Classification of whole images, as the training loop sees it. Shapes: B images, C classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import FinetuneConfig
from fastselfie.pipelines.view import Batch, View
from fastselfie.pretext.task import Loss, PixelFormat

LOSS_UNIT = 2.0**-24
"""What an image's loss is rounded to before it is summed, in nats."""


class ClassifyTask:
    """Cross-entropy on labels. See `fastselfie.pretext.task.Task`."""

    def __init__(self, config: FinetuneConfig, network: nn.Module, pixels: PixelFormat) -> None:
        self.network = network
        self.view = View.of(config, 1)
        self._pixels = pixels

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Loss:
        """Loss and accuracy over a batch."""
        scores_BC = forward(self._images(batch)).float()
        right_B = scores_BC.argmax(dim=1) == batch.labels_B
        return Loss(value=F.cross_entropy(scores_BC, batch.labels_B), metrics={"accuracy": right_B.float().mean()})

    @torch.no_grad()
    def counts(self, batch: Batch) -> Tensor:
        """Right answers, cross-entropy in units of `LOSS_UNIT`, and images: int64 (3,), sums over the batch.

        In whole numbers the sum is the same over any number of processes.
        """
        scores_BC = self.network(self._images(batch)).float()
        right_B = scores_BC.argmax(dim=1) == batch.labels_B
        loss_B = F.cross_entropy(scores_BC, batch.labels_B, reduction="none") / LOSS_UNIT  # exact: a power of two
        return torch.stack([right_B.sum(), loss_B.round().long().sum(), torch.full_like(right_B.sum(), len(right_B))])

    def _images(self, batch: Batch) -> Tensor:
        """(B, 3, H, H): an image is one patch of its own size."""
        pixels = self._pixels
        return batch.patches(patch=self.view.size, mean=pixels.mean, std=pixels.std, dtype=pixels.dtype)
