"""Which samples a step uses: the endless stream of epochs, cut into batches without a seam.

Epoch e visits the data set in the order ``epoch_order(seed, e)``; the stream is epoch 0, epoch 1, and so on. A batch
may span epochs, so there is no partial batch and no epoch boundary. Shapes: B samples asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastselfie.randomness import epoch_order


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The stream of a data set of ``size`` samples.

    Attributes:
        seed: decides the orders. device: where the indices are wanted.
    """

    seed: int
    size: int
    device: torch.device

    def samples(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Entries [start, stop) of the stream: epoch and sample index of each, int64 (B,)."""
        epochs, samples = [], []
        at = start
        while at < stop:
            epoch, offset = divmod(at, self.size)
            take = min(stop - at, self.size - offset)
            samples.append(_order(self.seed, epoch, self.size, self.device)[offset : offset + take])
            epochs.append(torch.full((take,), epoch, device=self.device, dtype=torch.int64))
            at += take
        return torch.cat(epochs), torch.cat(samples)


# An epoch's order costs a sort of the whole data set; a batch needs one or two neighbouring epochs.
@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    return epoch_order(seed, epoch, size, device)
