"""Which images of a split a pipeline sees: all, all but a few, or those of a list. What can be said in few numbers is
not written out, one number an image.

Shapes: K images set aside, B entries asked for.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor


class AllBut:
    """The images [0, count) in order without some: to be measured and indexed like the int64 tensor of them."""

    def __init__(self, count: int, aside_K: Tensor | None = None) -> None:
        """Args: aside_K: int64 (K,), different images in any order, on the CPU."""
        aside_K = torch.zeros(0, dtype=torch.int64) if aside_K is None else aside_K.sort().values
        self._count = count
        # How many entries come before each image that is left out.
        self._before_K = aside_K - torch.arange(len(aside_K))

    def __len__(self) -> int:
        return self._count - len(self._before_K)

    def __getitem__(self, entries: Tensor | slice) -> Tensor:
        """The images at those entries: int64 (B,)."""
        if isinstance(entries, slice):
            entries = torch.arange(*entries.indices(len(self)))
        return entries + torch.searchsorted(self._before_K, entries, right=True)

    def tolist(self) -> list[int]:
        """All of them."""
        return self[:].tolist()


Rows: TypeAlias = Tensor | AllBut
"""Images of a split by entry; a tensor of them is int64 (S,)."""
