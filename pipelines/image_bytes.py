"""What can be told of an image's bytes without decoding them: is it an image at all, how large, and is its end there?

The decoders below DALI print lines of their own about such files; found here, they are one line. It also does not
depend on the crop then: a region above the place where a JPEG file is cut off would decode.
"""

from __future__ import annotations

import struct

from fastselfie.pipelines.exif_sides import is_unclear_jpeg, is_unclear_png
from fastselfie.pipelines.jpeg_header import jpeg_header

MOST_PIXELS = 1 << 27
"""Pixels of an image at most, 134 million: a header that claims more is taken for damage, and bounds the memory."""
MOST_BYTES = 1 << 30
"""Bytes of an image at most."""
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_HEADER = "is damaged (its header)"
_UNCLEAR = "has damaged EXIF, or twice, and which way is up is not clear"


class BadImage(Exception):  # noqa: N818 (what is wrong is the image)
    """An image that cannot be used. Its text says why and continues a name, as in ``is cut off``."""


def fault(data: bytes) -> str | None:
    """What is wrong with a JPEG or PNG image's bytes, as far as its header and its ends tell; None if nothing."""
    if not data:
        return "is empty"
    for start, end in ((_JPEG, _JPEG_END), (_PNG, _PNG_END)):
        if data.startswith(start):
            # Other bytes may follow the end mark; cameras and editors put them there.
            if data.rfind(end) <= 0:
                return "is cut off"
            return _jpeg_fault(data) if start == _JPEG else _png_fault(data)
    return "is no JPEG or PNG image"


def _jpeg_fault(data: bytes) -> str | None:
    header = jpeg_header(memoryview(data))
    if header is None:
        return _HEADER
    return size_fault(header.rows, header.columns) or (_UNCLEAR if is_unclear_jpeg(data, header) else None)


def _png_fault(data: bytes) -> str | None:
    found = sides(data)
    wrong = _HEADER if found is None else size_fault(*found)
    return wrong or (_UNCLEAR if is_unclear_png(data) else None)


def check_bytes(count: int) -> None:
    """Raises `BadImage` where an image of so many bytes is not read."""
    if count > MOST_BYTES:
        raise BadImage(f"has {count} bytes, more than the {MOST_BYTES} that are read")


def size_fault(rows: int, columns: int) -> str | None:
    """What is wrong with an image of so many pixels; None if nothing."""
    if rows == 0 or columns == 0:
        return _HEADER
    if rows * columns > MOST_PIXELS:
        return f"has {rows} x {columns} pixels, more than the {MOST_PIXELS} that are read"
    return None


def sides(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that the header of a JPEG or PNG image speaks of; None where there is no such header."""
    if data.startswith(_JPEG):
        header = jpeg_header(memoryview(data))
        return None if header is None else (header.rows, header.columns)
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    columns, rows = struct.unpack_from(">II", data, 16)
    return rows, columns
