"""The random resized crop's window, computed inside the DALI graph from the image's shape and uniform numbers.

Ten attempts at an area and an aspect ratio, of which the first that fits is taken, else the largest centred window
whose aspect ratio is allowed (Szegedy et al. 2015; the paper's augmentation for 224x224, section 3.2). In fp64, so that
every decoder and machine rounds to the same pixels. DALI has no branches for a sample, so all attempts are computed as
vectors and the first that fits is selected by arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

from fastselfie.pipelines.draws import ASPECT, ATTEMPTS, COLUMN, ROW

_LOG_LOW, _LOG_HIGH = math.log(1 / ASPECT), math.log(ASPECT)


def random_window(shape: Any, draws: Any, min_area: float) -> tuple[Any, Any]:
    """Start and shape of each sample's window.

    Args:
        shape: fp64 (3,) a sample, as `peek_image_shape` gives it: rows, columns, channels.
        draws: fp64 (`DRAWS`,) a sample, uniform on [0, 1): areas, aspect ratios, row and column.

    Returns:
        start, shape: int32 (2,) a sample each, rows before columns.
    """
    rows, columns = shape[0], shape[1]
    area = (draws[:ATTEMPTS] * (1 - min_area) + min_area) * (rows * columns)
    aspect = dali_math.exp(draws[ATTEMPTS : 2 * ATTEMPTS] * (_LOG_HIGH - _LOG_LOW) + _LOG_LOW)
    heights, widths = _round(dali_math.sqrt(area / aspect)), _round(dali_math.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= rows) & (widths > 0) & (widths <= columns)

    earliness = types.Constant(np.arange(ATTEMPTS, 0, -1, dtype=np.int32), device="cpu") * _int(fits)  # 0: no fit
    earliest = fn.reductions.max(earliness, axes=0)
    found = fn.cast(earliest > 0, dtype=types.FLOAT64)
    first = _int(earliness == earliest) * _int(fits)
    # At most one attempt is selected, so these sums are that attempt's sides, or 0.
    height, width = (fn.reductions.sum(_int(sides) * first, axes=0) for sides in (heights, widths))
    height = height + (1 - found) * dali_math.min(rows, _round(columns * ASPECT))
    width = width + (1 - found) * dali_math.min(columns, _round(rows * ASPECT))

    row = found * dali_math.floor(draws[ROW] * (rows - height + 1)) + (1 - found) * _half(rows - height)
    column = found * dali_math.floor(draws[COLUMN] * (columns - width + 1)) + (1 - found) * _half(columns - width)
    return _int(fn.stack(row, column)), _int(fn.stack(height, width))


def _round(value: Any) -> Any:
    return dali_math.floor(value + 0.5)


def _half(value: Any) -> Any:
    return dali_math.floor(value * 0.5)


def _int(value: Any) -> Any:
    return fn.cast(value, dtype=types.INT32)
