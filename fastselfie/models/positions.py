"""Position vectors e (paper, section 2.2): a table for small grids, row + column vectors for larger ones.

Shapes: G patches a side, N = G * G patches, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST_TABLE = 4


class Positions(nn.Module):
    """One learned vector a place: 16 vectors for a 4x4 grid, 7 + 7 for 7x7.

    Each e starts as N(0, 1), or with another ``deviation``: with much smaller vectors all queries of an image look
    alike at the start and learning stalls. Row and column vectors start with half of the variance, so that their sum
    has all of it.
    """

    def __init__(self, grid: int, features: int, deviation: float = 1.0) -> None:
        super().__init__()
        self.table: nn.Parameter | None = None
        if grid <= LARGEST_TABLE:
            self.table = nn.Parameter(torch.randn(grid * grid, features) * deviation)
        else:
            self.row = nn.Parameter(torch.randn(grid, features) * (0.5**0.5 * deviation))
            self.column = nn.Parameter(torch.randn(grid, features) * (0.5**0.5 * deviation))

    def forward(self) -> Tensor:
        """All vectors, row by row: (N, D), fp32."""
        if self.table is not None:
            return self.table
        return (self.row[:, None] + self.column).flatten(0, 1)
