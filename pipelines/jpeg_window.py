"""A JPEG file made smaller, to the part around a window, without decoding it: its restart segments are spliced.

A restart marker ends a segment of so many MCUs (the blocks of pixels that are coded together), and nothing in a segment
depends on another. Where a row of MCUs is a whole number of segments, those that a window touches make a JPEG file of
their own, in which the window's pixels are the same to the bit: what lies around the window is neither decoded nor
transformed. `prepare` writes its images so. The format: ITU-T T.81, sections B.2.4.4 and E.1.4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.jpeg_header import JpegHeader

_INTERVAL, _SCAN, _END = 0xDD, 0xDA, b"\xff\xd9"
_RESTART, _CYCLE = np.uint8(0xD0), np.uint8(8)  # the first of the markers, which are numbered anew after eight
_FRAMES = (0xC0, 0xC1)  # one pass over the image
_WIDEST = 32  # pixels of a segment at most: wider ones leave more around a window
_BORDER = 1  # pixels around a window that its own depend on, through the interpolation of colour
_WORTH = 0.9  # of what would be decoded otherwise: cutting takes time too


@dataclass(frozen=True, kw_only=True)
class Part:
    """A smaller file: its bytes, uint8 (size,), its shape, and where in it the window begins, in pixels."""

    data: NDArray[np.uint8]
    rows: int
    columns: int
    row: int
    column: int


def restart_interval(columns: int, mcu_columns: int) -> int:
    """MCUs from marker to marker so that windows can be cut out: the most that divide a row, up to 32 pixels.

    Args: columns: of the image. mcu_columns: pixels across an MCU.
    """
    across = -(-columns // mcu_columns)
    return max(count for count in range(1, max(_WIDEST // mcu_columns, 1) + 1) if across % count == 0)


def cut(data: NDArray[np.uint8], header: JpegHeader, window: tuple[int, int, int, int]) -> Part | None:
    """A smaller file with the window in it; None where segments do not allow it or it would save little.

    Args:
        data: the file, uint8 (size,). header: its own; of the usual kinds.
        window: of the stored image: first row and column, height and width in pixels.
    """
    scan = _scan(data, header) if header.marker in _FRAMES else None
    if scan is None:
        return None
    interval, start = scan
    tall, wide = header.mcu[0], header.mcu[1] * interval  # pixels of a segment
    down, (across, rest) = -(-header.rows // tall), divmod(-(-header.columns // header.mcu[1]), interval)
    row, column, height, width = window
    top, bottom = _touched(row, height, tall, down)
    left, right = _touched(column, width, wide, across)
    if rest or (bottom - top) * (right - left) > _WORTH * bottom * across:
        return None
    ends = _ends(data[start:], down * across)
    if ends is None:
        return None
    rows, columns = min(bottom * tall, header.rows) - top * tall, min(right * wide, header.columns) - left * wide
    front = bytearray(data[:start])
    struct.pack_into(">HH", front, header.rows_at, rows, columns)
    file = _spliced(front, data[start:], ends, across, (top, bottom), (left, right))
    return Part(data=file, rows=rows, columns=columns, row=row - top * tall, column=column - left * wide)


def _scan(data: NDArray[np.uint8], header: JpegHeader) -> tuple[int, int] | None:
    """MCUs from marker to marker, and where the coded pixels begin; None where not all are in one scan with markers."""
    view, at, interval = data.data, header.scan_at, 0
    while at + 5 < len(view) and view[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", view, at + 1)
        if marker == _INTERVAL:
            (interval,) = struct.unpack_from(">H", view, at + 4)
        elif marker == _SCAN:
            whole = interval and view[at + 4] == header.channels and bytes(view[-2:]) == _END
            return (interval, at + 2 + length) if whole else None
        at += 2 + length
    return None


def _touched(start: int, extent: int, step: int, count: int) -> tuple[int, int]:
    """The first segment that the window depends on, and the first after those, of ``count`` on one axis."""
    return max(start - _BORDER, 0) // step, min(-(-(start + extent + _BORDER) // step), count)


def _ends(scan: NDArray[np.uint8], count: int) -> NDArray[np.int64] | None:
    """Where the marker after each segment stands, int64 (1 + count,), before the first -2; None without as many."""
    prefixes = np.flatnonzero(scan[:-1] == 0xFF)
    marks = prefixes[scan[prefixes + 1] - _RESTART < _CYCLE]  # what is below wraps
    return np.concatenate(([-2], marks, [len(scan) - 2])) if len(marks) == count - 1 else None


def _spliced(
    front: bytearray, scan: NDArray[np.uint8], ends: NDArray[np.int64], across: int, rows: tuple[int, int],
    columns: tuple[int, int],
) -> NDArray[np.uint8]:  # fmt: skip
    """``front`` and the segments of those rows and columns, the markers behind them numbered anew."""
    (top, bottom), (left, right) = rows, columns
    cells = ends[1:].reshape(-1, across)[top:bottom, left:right]
    begins, stops = ends[:-1].reshape(-1, across)[top:bottom, left] + 2, cells[:, -1] + 2
    view, offsets = scan.data, np.cumsum(stops - begins) - stops + len(front)
    file = np.frombuffer(
        bytearray().join([front, *(view[a:b] for a, b in zip(begins.tolist(), stops.tolist(), strict=True))]), np.uint8
    )
    marks = (cells + offsets[:, None]).ravel() + 1
    file[marks] = np.arange(len(marks), dtype=np.uint8) % _CYCLE + _RESTART
    file[-1] = _END[1]
    return file
