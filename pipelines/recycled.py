"""Memory for one batch after another that comes back by itself: fresh memory costs page faults, one every 4 KiB."""

from __future__ import annotations

import weakref
from collections import deque

import torch
from torch import Tensor

_KEPT = 4  # freed batches that are kept; more come back at once only where somebody had gathered many


class RecycledMemory:
    """Tensors in the CPU's memory that is used again as soon as no tensor shares it any more, whoever held it."""

    def __init__(self) -> None:
        self._free: deque[Tensor] = deque(maxlen=_KEPT)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As `torch.empty`, contiguous; what is in it is left from before."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        memory = self._taken(size)
        # PyTorch tells nobody when memory is free, but it lets go of the array that it was given, and that can be seen.
        array = memory[:size].numpy()
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    def _taken(self, size: int) -> Tensor:
        """At least ``size`` bytes; freed memory that is too small is given up."""
        while True:
            try:
                memory = self._free.pop()
            except IndexError:
                return torch.empty(size, dtype=torch.uint8)
            if memory.numel() >= size:
                return memory
