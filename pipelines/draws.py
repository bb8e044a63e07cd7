"""The random numbers of a random resized crop: drawn here, turned into a window inside the DALI graph."""

from __future__ import annotations

from torch import Tensor

from fastselfie.randomness import Purpose, uniform

ATTEMPTS = 10
ASPECT = 4 / 3
"""Largest aspect ratio of a window; the smallest is its inverse."""
ROW, COLUMN = 2 * ATTEMPTS, 2 * ATTEMPTS + 1
DRAWS = 2 * ATTEMPTS + 2
"""Uniform numbers a sample: an area each attempt, an aspect ratio each attempt, then where the window's corner is."""


def window_draws(seed: int, epoch_B: Tensor, sample_B: Tensor) -> Tensor:
    """fp64 (B, `DRAWS`), uniform on [0, 1)."""
    return uniform(seed, Purpose.CROP, epoch_B, sample_B, DRAWS)
