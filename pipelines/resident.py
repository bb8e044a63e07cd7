"""Small images that live on the device whole: loading a batch is an index.

CIFAR-10 is 150 MB of uint8, ImageNet at 32x32 3.9 GB.
Shapes: B images a batch, S images of the split, R of them that are seen, H pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fastselfie.pipelines.rows import AllBut, Rows
from fastselfie.pipelines.sampler import Sampler
from fastselfie.pipelines.source import ResidentSplit
from fastselfie.pipelines.view import Batch, View
from fastselfie.randomness import Purpose, integers


class ResidentPipeline:
    """A split on the device, or the part of it that ``rows`` names.

    A sample's key is its index in the whole split, so a subset's images are cropped and flipped as they would be there.
    Beside the CPU, a device holds the subset's pixels alone.
    """

    def __init__(
        self, split: ResidentSplit, *, view: View, seed: int, device: torch.device, rows: Rows | None = None
    ) -> None:
        self.view, self.seed = view, seed
        rows_R, pixels = (AllBut(len(split)) if rows is None else rows)[:].cpu(), torch.from_numpy(split.images_SHW3)
        place_R = rows_R
        if device.type != "cpu" and len(rows_R) < len(split):
            # Of what lies in the CPU's memory already, a part would be a copy; on a device several pipelines of a split
            # would have it whole.
            pixels, place_R = pixels[rows_R], torch.arange(len(rows_R))
        self._pixels, self._place_R = pixels.to(device), place_R.to(device)
        self._labels_S = torch.from_numpy(split.labels_S).to(device)
        self._rows = rows_R.to(device)
        self._sampler = Sampler(seed=seed, size=len(self._rows), device=device)

    def announce(self, requests: Iterable[tuple[int, int]]) -> None:
        """See `Pipeline.announce`. Nothing has to be prepared here."""

    def batch(self, start: int, stop: int) -> Batch:
        """See `fastselfie.pipelines.pipeline.Pipeline`. No host synchronisation."""
        epoch_B, entry_B = self._sampler.samples(start, stop)
        return self._describe(epoch_B, self._rows[entry_B], self._place_R[entry_B], self.view, start)

    def in_order(self, requests: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """See `Pipeline.in_order`: images [start, stop) of the rows."""
        for start, stop in requests:
            sample_B, place_B = self._rows[start:stop], self._place_R[start:stop]
            yield self._describe(torch.zeros_like(sample_B), sample_B, place_B, self.view.plain(), None)

    def _describe(self, epoch_B: Tensor, sample_B: Tensor, place_B: Tensor, view: View, entry: int | None) -> Batch:
        corner_B2 = flip_B = None
        if view.pad:
            corner_B2 = integers(self.seed, Purpose.CROP, epoch_B, sample_B, 2, 2 * view.pad + 1)
        if view.flip:
            flip_B = integers(self.seed, Purpose.FLIP, epoch_B, sample_B, 1, 2)[:, 0].bool()
        return Batch(
            view=view, pixels=self._pixels, epoch_B=epoch_B, sample_B=sample_B, labels_B=self._labels_S[sample_B],
            rows_B=place_B, corner_B2=corner_B2, flip_B=flip_B, entry=entry,
        )  # fmt: skip
