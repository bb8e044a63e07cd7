"""JPEG files from which windows can be cut without decoding: restart markers, and a table of where they stand.

A restart marker ends a segment of so many MCUs (the blocks of pixels that are coded together), and nothing in a segment
depends on another. Where a row of MCUs is a whole number of segments, those that a window touches make a JPEG file of
their own (`fastselfie.pipelines.jpeg_window`). Other readers see a plain baseline file: markers are part of the format
(ITU-T T.81, sections B.2.4.4 and E.1.4), and the table is an application segment, which they pass over. It holds
`_NAME`, then of each segment the number of bytes with the marker behind it, or the end of the image: `_ITEM`.

Shapes: S segments, in the order of the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.jpeg_header import JpegHeader, jpeg_header

END = b"\xff\xd9"
FIRST_RESTART, RESTARTS = 0xD0, 8
"""The first restart marker; they are numbered, and after eight anew."""
_SCAN, _INTERVAL, _TABLE = 0xDA, 0xDD, 0xE9
_NAME, _ITEM = b"FastSelfie\0", np.dtype("<u2")
_LONGEST = 0xFFFF  # bytes of a segment of the header
_ONE_PASS = (0xC0, 0xC1)
_WIDEST = 32  # pixels: wider segments leave more around a window, narrower ones take more bytes


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The only scan of a file with restart markers.

    Attributes:
        at: where its header begins. start: where the coded pixels begin.
        interval: MCUs of a segment. down, across: segments in a column and in a row of the image.
        sizes_S: uint16 (S,), bytes of each segment with its marker; None where the file has no such table.
    """

    at: int
    start: int
    interval: int
    down: int
    across: int
    sizes_S: NDArray[np.uint16] | None


def restart_interval(columns: int, mcu_columns: int) -> int:
    """MCUs from marker to marker: the most that divide a row, up to 32 pixels.

    Args: columns: of the image. mcu_columns: pixels across an MCU.
    """
    across = -(-columns // mcu_columns)
    return max(count for count in range(1, _WIDEST // mcu_columns + 1) if across % count == 0)


def find_scan(data: NDArray[np.uint8], header: JpegHeader) -> Scan | None:
    """The scan of a file, uint8 (size,), of the usual kinds; None unless it is the only one and segments fill rows."""
    view, at, interval = data.data, header.scan_at, 0
    table: NDArray[np.uint16] | None = None
    if header.marker not in _ONE_PASS or bytes(view[-2:]) != END:
        return None
    while at + 5 < len(view) and view[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", view, at + 1)
        if marker == _SCAN:
            if interval == 0 or view[at + 4] != header.channels:
                return None
            across, rest = divmod(-(-header.columns // header.mcu[1]), interval)
            down, start = -(-header.rows // header.mcu[0]), at + 2 + length
            fits = table is not None and len(table) == down * across and table.sum() == len(view) - start
            sizes_S = table if fits else None
            found = Scan(at=at, start=start, interval=interval, down=down, across=across, sizes_S=sizes_S)
            return None if rest else found
        if marker == _INTERVAL:
            (interval,) = struct.unpack_from(">H", view, at + 4)
        elif marker == _TABLE and bytes(view[at + 4 : at + 4 + len(_NAME)]) == _NAME:
            body = data[at + 4 + len(_NAME) : at + 2 + length]
            table = body[: len(body) // 2 * 2].view(_ITEM)
        at += 2 + length
    return None


def with_table(file: bytes) -> bytes:
    """A file with restart markers and the table; the file itself if its markers are not those of whole rows."""
    header, data = jpeg_header(memoryview(file)), np.frombuffer(file, np.uint8)
    scan = find_scan(data, header) if header and header.usual else None
    if scan is None or scan.sizes_S is not None:
        return file
    coded = data[scan.start :]
    marks = np.flatnonzero((coded[:-1] == 0xFF) & (coded[1:] >= FIRST_RESTART) & (coded[1:] < FIRST_RESTART + RESTARTS))
    sizes_S = np.diff(np.concatenate(([0], marks + 2, [len(coded)])))
    length = 2 + len(_NAME) + sizes_S.size * _ITEM.itemsize
    if len(sizes_S) != scan.down * scan.across or length > _LONGEST or sizes_S.max() > np.iinfo(_ITEM).max:
        return file
    table = struct.pack(">BBH", 0xFF, _TABLE, length) + _NAME + sizes_S.astype(_ITEM).tobytes()
    return file[: scan.at] + table + file[scan.at :]
