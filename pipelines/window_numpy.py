"""The random resized crop's windows in NumPy: `fastselfie.pipelines.window` for decoders outside a DALI graph.

The same fp64 operations in the same order, so that both round to the same pixels. Shapes: B images.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.draws import ASPECT, ATTEMPTS, COLUMN, ROW

_LOG_LOW, _LOG_HIGH = math.log(1 / ASPECT), math.log(ASPECT)


def random_windows(shape_B2: NDArray[Any], draws: NDArray[np.float64], min_area: float) -> NDArray[np.int32]:
    """Each image's window: int32 (B, 4), first row, first column, height, width.

    Args:
        shape_B2: rows and columns, integers (B, 2). draws: fp64 (B, `DRAWS`), uniform on [0, 1).
    """
    rows, columns = shape_B2.astype(np.float64).T
    area = (draws[:, :ATTEMPTS] * (1 - min_area) + min_area) * (rows * columns)[:, None]
    aspect = np.exp(draws[:, ATTEMPTS : 2 * ATTEMPTS] * (_LOG_HIGH - _LOG_LOW) + _LOG_LOW)
    heights, widths = _round(np.sqrt(area / aspect)), _round(np.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= rows[:, None]) & (widths > 0) & (widths <= columns[:, None])

    found, image = fits.any(axis=1), np.arange(len(rows))
    first = fits.argmax(axis=1)
    height = np.where(found, heights[image, first], np.minimum(rows, _round(columns * ASPECT)))
    width = np.where(found, widths[image, first], np.minimum(columns, _round(rows * ASPECT)))
    row = np.where(found, np.floor(draws[:, ROW] * (rows - height + 1)), np.floor((rows - height) * 0.5))
    column = np.where(found, np.floor(draws[:, COLUMN] * (columns - width + 1)), np.floor((columns - width) * 0.5))
    return np.stack([row, column, height, width], axis=1).astype(np.int32)


def _round(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.floor(value + 0.5)
