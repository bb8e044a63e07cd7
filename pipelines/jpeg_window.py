"""A JPEG file made smaller, to the part around a window, without decoding it: segments of it beside each other.

The window's pixels are those of the whole image to the bit, and what lies around is neither decoded nor transformed. It
is little work in Python, of which threads can only do one at a time: `fastselfie.pipelines.jpeg_segments` tells where
segments stand, so that they need not be looked for.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.jpeg_header import JpegHeader
from fastselfie.pipelines.jpeg_segments import END, FIRST_RESTART, RESTARTS, Segments, find_segments

_BORDER = 1  # pixels around a window that its own depend on, through the interpolation of colour
_NARROW = 4  # columns of an image in which libjpeg interpolates no colour
WORTH = 16384
"""Pixels less to decode, than the image down to the window has, for which cutting is worth its own time, much of which
is Python's."""
_NUMBERS = (np.arange(1 << 16) % RESTARTS + FIRST_RESTART).astype(np.uint8)  # as many as a table has at most


class Part(NamedTuple):
    """A smaller file: its bytes, uint8 (size,), its shape, and where in it the window begins, in pixels."""

    data: NDArray[np.uint8]
    rows: int
    columns: int
    row: int
    column: int


def cut(data: NDArray[np.uint8], header: JpegHeader, window: tuple[int, int, int, int]) -> Part | None:
    """A smaller file with the window in it; None where the file has no table of segments or it would save little.

    Args:
        data: the file, uint8 (size,). header: its own; of the usual kinds.
        window: of the stored image: first row and column, height and width in pixels.
    """
    row, column, height, width = window
    most = (row + height + header.mcu[0]) * (header.columns + header.mcu[1]) - height * width  # that it can save
    found = find_segments(data, header) if most >= WORTH else None
    if found is None:
        return None
    down, across = found.sizes_DA.shape
    tall, wide = header.mcu[0], header.mcu[1] * found.interval  # pixels of a segment
    top, bottom = _touched(row, height, tall, down)
    left, right = _touched(column, width, wide, across)
    left = min(left, max(header.columns - _NARROW - 1, 0) // wide)  # the last segment may be as narrow
    if (bottom * across - (bottom - top) * (right - left)) * tall * wide < WORTH:
        return None
    rows, columns = min(bottom * tall, header.rows) - top * tall, min(right * wide, header.columns) - left * wide
    front = bytearray(data[: found.start])
    struct.pack_into(">HH", front, header.rows_at, rows, columns)
    file = _beside_each_other(front, data.data, found, (slice(top, bottom), slice(left, right)))
    return Part(data=file, rows=rows, columns=columns, row=row - top * tall, column=column - left * wide)


def _touched(start: int, extent: int, step: int, count: int) -> tuple[int, int]:
    """The first segment that the window depends on, and the first after those, of ``count`` on one axis."""
    return max(start - _BORDER, 0) // step, min(-(-(start + extent + _BORDER) // step), count)


def _beside_each_other(
    front: bytearray, file: memoryview, found: Segments, where: tuple[slice, slice]
) -> NDArray[np.uint8]:
    """``front`` and the segments in those rows and columns, the markers behind them numbered anew."""
    stops, sizes = found.stops_DA[where], found.sizes_DA[where]
    starts = (stops[:, 0] - sizes[:, 0] + found.start).tolist()
    parts = [file[start:stop] for start, stop in zip(starts, (stops[:, -1] + found.start).tolist(), strict=True)]
    joined = np.frombuffer(bytearray().join([front, *parts]), np.uint8)
    marks = sizes.cumsum(dtype=np.int64) + (len(front) - 1)  # a marker's second byte
    joined[marks] = _NUMBERS[: len(marks)]
    joined[-1] = END[1]
    return joined
