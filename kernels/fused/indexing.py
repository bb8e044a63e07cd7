"""Index arithmetic that the kernels share."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MOST_REGISTERS = 128
"""A limit for kernels of up to 16 warps that need fewer: without one ptxas takes too few on some devices and spills."""


@triton.jit
def divide(first, lane, size: tl.constexpr):
    """Quotient (int64) and remainder (int32) of ``first + lane`` by ``size``.

    ``first``, an int64 scalar, may be any size; ``lane``, int32, is small: only the scalar is divided in 64 bits.
    """
    rest = (first % size).to(tl.int32) + lane
    return first // size + rest // size, rest % size


def rows_of(maps: Tensor) -> Tensor:
    """Maps (M, D, h, w) as rows of channels (M * h * w, D): a view where channels-last, else a copy in that layout."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).contiguous()
