"""JPEG files from which windows can be cut without decoding: restart markers, and a table of where they stand.

A restart marker ends a segment of so many MCUs (the blocks of pixels that are coded together), and nothing in a segment
depends on another. Where a row of MCUs is a whole number of segments, those that a window touches make a JPEG file of
their own (`fastselfie.pipelines.jpeg_window`). Other readers see a plain baseline file: markers are part of the format
(ITU-T T.81, sections B.2.4.4 and E.1.4), and the table is an application segment, which they pass over. It stands
between the segment of the interval and the scan's header and holds `_NAME`, then of each segment of the image how many
bytes it has with the marker behind it, which is the image's end at last: `_ITEM`.

Shapes: S segments, in the order of the file, D in a column and A in a row of the image.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.jpeg_header import JpegHeader, jpeg_header
from fastselfie.pipelines.jpeg_scan import UnusualJpeg, read_scan

END = b"\xff\xd9"
FIRST_RESTART, RESTARTS = 0xD0, 8
"""The first restart marker; they are numbered, and after eight anew."""
_SCAN, _INTERVAL, _TABLE = 0xFFDA, 0xFFDD, 0xFFE9
_NAME, _ITEM = b"FastSelfie\0", np.dtype("<u2")
_BEFORE = struct.Struct(">HHHHH")  # the interval's marker, length and value, the table's marker and length
_HEADER = struct.Struct(">HHB")  # the scan's marker, length and number of channels
_FAR = 2048  # bytes behind the frame within which the table begins: there are Huffman tables in between
_LONGEST = 0xFFFF  # bytes of a segment of the header
_ONE_PASS = (0xC0, 0xC1)
_WIDEST = 32  # pixels: wider segments leave more around a window, narrower ones take more bytes


class Segments(NamedTuple):  # made for every image, and a dataclass takes longer
    """Where the segments of an image are.

    Attributes:
        start: where in the file the coded pixels begin. interval: MCUs of a segment.
        sizes_DA: uint16, bytes of each with its marker. stops_DA: int64, where each ends, from ``start``.
    """

    start: int
    interval: int
    sizes_DA: NDArray[np.uint16]
    stops_DA: NDArray[np.int64]


def restart_interval(columns: int, mcu_columns: int) -> int:
    """MCUs from marker to marker: the most that divide a row, up to 32 pixels.

    Args: columns: of the image. mcu_columns: pixels across an MCU.
    """
    across = -(-columns // mcu_columns)
    return max(count for count in range(1, max(_WIDEST // mcu_columns, 1) + 1) if across % count == 0)


def find_segments(data: NDArray[np.uint8], header: JpegHeader) -> Segments | None:
    """Those of a file, uint8 (size,), of the usual kinds; None where it has no table, or one that does not fit."""
    at = data[header.scan_at : header.scan_at + _FAR].tobytes().find(_NAME) + header.scan_at
    table = at + len(_NAME)
    if at < header.scan_at + _BEFORE.size or header.marker not in _ONE_PASS:
        return None
    *markers, length = _BEFORE.unpack_from(data.data, at - _BEFORE.size)
    stop, interval = at - 2 + length, markers[2]
    if stop + _HEADER.size > len(data) or (stop - table) % _ITEM.itemsize or interval == 0:
        return None
    scan, header_length, channels = _HEADER.unpack_from(data.data, stop)
    across, rest = divmod(-(-header.columns // header.mcu[1]), interval)
    down, start = -(-header.rows // header.mcu[0]), stop + 2 + header_length
    right = (*markers, scan, channels) == (_INTERVAL, 4, interval, _TABLE, _SCAN, header.channels)
    if not right or rest or not 0 < down * across * _ITEM.itemsize == stop - table or data[-2:].tobytes() != END:
        return None
    sizes_DA = data[table:stop].view(_ITEM).reshape(down, across)
    stops_S = sizes_DA.cumsum(dtype=np.int64)
    if stops_S[-1] != len(data) - start:
        return None
    return Segments(start, interval, sizes_DA, stops_S.reshape(down, across))


def with_table(file: bytes) -> bytes:
    """A file with restart markers and the table; the file itself if its markers are not those of whole rows."""
    header = jpeg_header(memoryview(file))
    try:
        scan = read_scan(file)
    except UnusualJpeg:
        return file
    if header is None or not header.usual:
        return file
    at, coded = scan.stop - 4 - len(scan.segments[-1][1]), np.frombuffer(file, np.uint8)[scan.stop :]
    marks = np.flatnonzero((coded[:-1] == 0xFF) & (coded[1:] >= FIRST_RESTART) & (coded[1:] < FIRST_RESTART + RESTARTS))
    sizes_S = np.diff(np.concatenate(([0], marks + 2, [len(coded)])))
    length = 2 + len(_NAME) + len(sizes_S) * _ITEM.itemsize
    if length > _LONGEST or sizes_S.max() > np.iinfo(_ITEM).max:
        return file
    table = struct.pack(">HH", _TABLE, length) + _NAME + sizes_S.astype(_ITEM).tobytes()
    marked = file[:at] + table + file[at:]
    return file if find_segments(np.frombuffer(marked, np.uint8), header) is None else marked
