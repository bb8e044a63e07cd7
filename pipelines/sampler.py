"""Which samples a step uses: the endless stream of epochs, cut into batches without a seam.

Epoch e visits the data set in the order ``epoch_order(seed, e)``, of which only what a batch needs is computed; the
stream is epoch 0, epoch 1, and so on. A batch may span epochs, so there is no partial batch and no epoch boundary.
Shapes: B samples asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.randomness import Purpose, scalar_key, shuffled


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
        """Entries [start, stop) of the stream: epoch and sample index of each, int64 (B,). Waits for no device."""
        epoch_B, place_B = np.divmod(np.arange(start, stop), self.size)
        epochs = range(start // self.size, -(-stop // self.size))
        keys = np.array([scalar_key(self.seed, Purpose.ORDER, epoch) for epoch in epochs], dtype=np.uint64)
        sample_B = shuffled(keys[epoch_B - epochs.start], place_B, self.size)
        return self._there(epoch_B), self._there(sample_B)

    def _there(self, numbers_B: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(numbers_B)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)
