"""Position vectors: a table for 4x4 grids, row plus column for 7x7, variance 1 at the start."""

from __future__ import annotations

import pytest
import torch

from fastselfie.models.positions import Positions


def test_a_4x4_grid_has_a_table() -> None:
    positions = Positions(4, 6)
    assert {name: tuple(value.shape) for name, value in positions.named_parameters()} == {"table": (16, 6)}
    assert positions.table is not None
    torch.testing.assert_close(positions(), positions.table, rtol=0, atol=0)


def test_a_7x7_grid_has_rows_and_columns() -> None:
    positions = Positions(7, 6)
    shapes = {name: tuple(value.shape) for name, value in positions.named_parameters()}
    assert shapes == {"row": (7, 6), "column": (7, 6)}
    with torch.no_grad():
        positions.row.copy_(torch.arange(7.0)[:, None] * 100 + torch.arange(6.0))
        positions.column.copy_(torch.arange(7.0)[:, None] * 10)
    e_ND = positions()
    assert e_ND.shape == (49, 6)
    for place in range(49):
        row, column = divmod(place, 7)
        assert e_ND[place].tolist() == [row * 100 + column * 10 + feature for feature in range(6)]


@pytest.mark.parametrize("grid", [4, 7])
@pytest.mark.parametrize("deviation", [None, 0.02, 0.3, 3.0])
def test_each_vector_starts_with_variance_1_or_as_asked(grid: int, deviation: float | None) -> None:
    torch.manual_seed(0)
    positions = Positions(grid, 8192) if deviation is None else Positions(grid, 8192, deviation)
    e_ND = positions().detach() / (deviation or 1)
    assert e_ND.dtype == torch.float32
    torch.testing.assert_close(e_ND.var(dim=1), torch.ones(grid * grid), rtol=0, atol=0.08)  # 5 standard errors
    torch.testing.assert_close(e_ND.mean(dim=1), torch.zeros(grid * grid), rtol=0, atol=0.06)
