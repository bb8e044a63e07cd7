"""Features of a frozen Selfie network, on whole images and patch by patch.

Pretraining shows the trunk single patches (paper, section 2.1) and finetuning whole images (section 2.3): the four
kinds of features tell how much is lost between the two, and how much of that is batch norm's statistics.
Shapes: B images of a batch, S images in all, N patches an image, D features, H and P pixels a side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.view import Batch
from fastselfie.pretext.task import PixelFormat
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.session import turns
from fastselfie.training.world import World

TRUNK_IMAGE = "trunk-image"
"""The trunk on the whole image, its last map averaged."""
TRUNK_IMAGE_RENORMED = "trunk-image-renormed"
"""The same with batch-norm statistics of whole images in place of those of patches."""
TRUNK_PATCHES = "trunk-patches"
"""The trunk on each patch, averaged over the N patches."""
POOLER = "pooler"
"""u with all N patches visible."""
KINDS = (TRUNK_IMAGE, TRUNK_IMAGE_RENORMED, TRUNK_PATCHES, POOLER)


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """What a network in evaluation mode makes of a batch of plain views.

    Attributes:
        patch: P. renormed: the trunk with other statistics, for `TRUNK_IMAGE_RENORMED`; None leaves that out.
        wanted: which of the kinds, and no more is computed than they need.
    """

    network: Selfie
    pixels: PixelFormat
    patch: int
    renormed: ResNetV2 | None = None
    wanted: tuple[str, ...] = KINDS

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Features of each of `kinds`: fp32 (B, D)."""
        network, kinds, found = self.network, self.kinds, dict[str, Tensor]()
        if TRUNK_IMAGE in kinds or TRUNK_IMAGE_RENORMED in kinds:
            images = self.whole(batch)
            trunks = {TRUNK_IMAGE: network.trunk, TRUNK_IMAGE_RENORMED: self.renormed}
            found |= {kind: trunk(images) for kind, trunk in trunks.items() if kind in kinds and trunk is not None}
        if TRUNK_PATCHES in kinds or POOLER in kinds:
            h_BND = network.trunk(self.patches(batch)).unflatten(0, (len(batch.sample_B), -1))
            if TRUNK_PATCHES in kinds:
                found[TRUNK_PATCHES] = h_BND.float().mean(dim=1)
            if POOLER in kinds:
                found[POOLER] = network.summarise(h_BND)
        return {kind: values.float() for kind, values in found.items()}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that are wanted and there, in the order of `KINDS`."""
        absent = {TRUNK_IMAGE_RENORMED} if self.renormed is None else set()
        absent |= {POOLER} if self.network.pooler is None else set()
        return tuple(kind for kind in KINDS if kind in self.wanted and kind not in absent)

    def whole(self, batch: Batch) -> Tensor:
        """The images, each as one patch: (B, 3, H, H)."""
        return self._cut(batch, batch.view.size)

    def patches(self, batch: Batch) -> Tensor:
        """(B * N, 3, P, P), row by row in the grid."""
        return self._cut(batch, self.patch)

    def _cut(self, batch: Batch, patch: int) -> Tensor:
        pixels = self.pixels
        return batch.patches(patch=patch, mean=pixels.mean, std=pixels.std, dtype=pixels.dtype)


@torch.no_grad()
def estimate_statistics(trunk: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of a trunk's batch norms anew: the mean over ``batches`` of a batch's own mean and
    unbiased variance, each norm seeing what the norms before it make of that batch (Wu and Johnson 2021, section 3).

    Momentum and mode are left as they were. Without a batch nothing changes.
    """
    norms = [module for module in trunk.modules() if isinstance(module, _BatchNorm)]
    before, training = [norm.momentum for norm in norms], trunk.training
    trunk.train()
    for count, batch in enumerate(batches, 1):
        for norm in norms:
            norm.momentum = 1 / count
        trunk(batch)
    trunk.train(training)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def with_statistics(trunk: ResNetV2, batches: Iterable[Tensor]) -> ResNetV2:
    """A copy of ``trunk`` whose statistics are those of ``batches``."""
    renormed = copy.deepcopy(trunk)
    estimate_statistics(renormed, batches)
    return renormed


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of S images on the CPU.

    Attributes:
        values: by kind, fp32 (S, D) each. labels_S: int64.
    """

    values: dict[str, Tensor]
    labels_S: Tensor


def gather_features(
    world: World, pipeline: Pipeline, rows: Tensor, labels_S: Tensor, chunk: int, extract: Extractor,
    quarantine: Quarantine, done: Callable[[int], None] = lambda images: None,
) -> Features:  # fmt: skip
    """The features of all images of a pipeline, the same in all processes, which take turns at its chunks.

    Images that cannot be used are left out and noted in ``quarantine``. The order is that of ``rows``.

    Args:
        rows: int64 (S,), the pipeline's, each once. labels_S: of the whole split, int64. done: told how many images of
            this process were looked at.
    """
    ascending, place_S = rows.sort()
    seen_S = torch.zeros(len(rows), dtype=torch.int64)
    values = {kind: torch.zeros(len(rows), extract.network.trunk.features) for kind in extract.kinds}
    for batch in pipeline.in_order(turns(world, len(rows), chunk)):
        quarantine.note(batch.refused)
        if not len(batch.sample_B):
            continue
        places_B = place_S[torch.searchsorted(ascending, batch.sample_B.cpu())]
        seen_S[places_B] = 1
        for kind, found_BD in extract(batch).items():
            values[kind][places_B] = found_BD.cpu()
        done(len(places_B))
    seen = world.sum_(seen_S) > 0
    for kind in values:  # one after the other: of many images, each is some GB
        values[kind] = world.sum_(values[kind])  # what another process has is 0 here, so sums are exact
        if not bool(seen.all()):
            values[kind] = values[kind][seen]
    return Features(values=values, labels_S=labels_S[rows][seen])
