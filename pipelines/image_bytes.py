"""What can be told of an image's bytes without decoding them: is it an image at all, how large, and is its end there?

The decoders below DALI print lines of their own about such files; found here, they are one line. It also does not
depend on the crop then: a region above the place where a JPEG file is cut off would decode.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MOST_PIXELS = 1 << 27
"""Pixels of an image at most, 134 million: a header that claims more is taken for damage, and bounds the memory."""
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_NO_FRAME = frozenset((0xC4, 0xC8, 0xCC))  # markers among 0xC0 to 0xCF that are no start of a frame


class BadImage(Exception):  # noqa: N818 (what is wrong is the image)
    """An image that cannot be used. Its text says why and continues a name, as in ``is cut off``."""


def fault(data: bytes) -> str | None:
    """What is wrong with a JPEG or PNG image's bytes, as far as its header and its ends tell; None if nothing."""
    if not data:
        return "is empty"
    for start, end, sides in ((_JPEG, _JPEG_END, _jpeg_sides), (_PNG, _PNG_END, _png_sides)):
        if data.startswith(start):
            # Other bytes may follow the end mark; cameras and editors put them there.
            if data.rfind(end) <= 0:
                return "is cut off"
            return _size_fault(sides(data))
    return "is no JPEG or PNG image"


def _size_fault(sides: tuple[int, int] | None) -> str | None:
    if sides is None or min(sides) == 0:
        return "is damaged (its header)"
    rows, columns = sides
    if rows * columns > MOST_PIXELS:
        return f"has {rows} x {columns} pixels, more than the {MOST_PIXELS} that are read"
    return None


@dataclass(frozen=True, kw_only=True)
class JpegFrame:
    """The header of a JPEG's frame: its marker's second byte tells the coding, 0xC0 baseline, 0xC2 progressive."""

    marker: int
    rows: int
    columns: int


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """The header of the frame in a JPEG's bytes; None where there is none."""
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a byte of padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            rows, columns = struct.unpack_from(">HH", data, at + 5)
            return JpegFrame(marker=marker, rows=rows, columns=columns)
        elif marker in (0xD9, 0xDA):  # the scan, before any frame
            return None
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _jpeg_sides(data: bytes) -> tuple[int, int] | None:
    """Rows and columns in the header of the frame; None where there is none."""
    frame = jpeg_frame(data)
    return None if frame is None else (frame.rows, frame.columns)


def _png_sides(data: bytes) -> tuple[int, int] | None:
    """Rows and columns in the header chunk; None where that is not the first."""
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    columns, rows = struct.unpack_from(">II", data, 16)
    return rows, columns
