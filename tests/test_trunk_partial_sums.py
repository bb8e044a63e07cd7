"""Partial sums in fp64: as NumPy adds them, however many there are and however they are divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernel_checks import DEVICE

pytest.importorskip("triton")
from fastselfie.kernels.fused import partial_sums
from fastselfie.kernels.fused.partial_sums import added_in_fp64


@pytest.mark.parametrize("stretches", [1, 3, 64])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("channels", [1, 16, 33])
def test_they_are_numpys(rows: int, channels: int, stretches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_sums, "_STRETCHES", stretches)
    generator = np.random.default_rng(rows)
    values = generator.normal(size=(rows, 2, channels)).astype(np.float32)
    found = added_in_fp64(torch.from_numpy(values).to(DEVICE))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.cpu(), values.sum(axis=0, dtype=np.float64), rtol=1e-14, atol=1e-14)


def test_small_ones_beside_large_ones_are_not_lost() -> None:
    """In fp32 2^25 + 1 is 2^25."""
    values = torch.ones(100, 2, 3)
    values[::10] = 2.0**25
    expected = 10 * 2.0**25 + 90
    assert added_in_fp64(values.to(DEVICE)).tolist() == [[expected] * 3] * 2
