"""Whether the EXIF of an image's bytes is clear about which way is up, as DALI reads it.

DALI has two readers. One gives the memory its shape. Where OpenCV decodes, which is every PNG image and each JPEG image
that libjpeg-turbo gives up, the other one turns the pixels. They differ over a directory that breaks off (one then
takes nothing of it, the other what stood before) and over which of several counts. Where one sees the image on its side
and the other does not, DALI writes beyond its memory, which ends the process.
"""

from __future__ import annotations

import struct
import zlib

from fastselfie.pipelines.jpeg_header import JpegHeader, first_scan

_MARK, _APP1, _SCAN = b"Exif\0\0", 0xE1, 0xDA
_ORIENTATION, _TIFF = 0x0112, 42
_TEXTS = frozenset((0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298))
_NUMBERS = {0x011A: 8, 0x011B: 8, 0x013E: 16, 0x013F: 48, 0x0211: 24, 0x0214: 48}
"""Tags that DALI follows beyond the directory: their sizes are counted in the file, or these, in bytes."""


def is_unclear_jpeg(data: bytes, header: JpegHeader) -> bool:
    """Whether the EXIF segments of a JPEG file leave open if the image lies on its side."""
    view, at, sides = memoryview(data), header.scan_at, set()
    if data.find(_MARK, 0, at) >= 0:
        at = 2
    elif data.find(_MARK, at, first_scan(data, header)) < 0:
        return False
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        if data[at + 1] == 0xFF:  # a byte of padding
            at += 1
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if data[at + 1] == _APP1 and data[at + 4 : at + 10] == _MARK:
            # `jpeg_header` stops at the frame, DALI does not.
            sides |= {_side(view[at + 10 : end])} | ({False} if at >= header.scan_at else set())
        at = end
    return None in sides or len(sides) > 1


def is_unclear_png(data: bytes) -> bool:
    """Whether the EXIF of a PNG file leaves open if the image lies on its side.

    OpenCV passes over a block with a wrong checksum, and may over any of an animation.
    """
    at, blocks, animated, size = 8, [], False, len(data)
    while at + 8 <= size:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind == b"eXIf":
            side = _side(memoryview(data)[at + 8 : end])
            whole = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big") == data[end : end + 4]
            blocks.append(None if side and not whole else side)
        animated |= kind == b"acTL"
        at = end + 4
    return len(blocks) > 1 or None in blocks or (animated and True in blocks)


def _side(tiff: memoryview) -> bool | None:
    """Whether it says that the image lies on its side; None where the readers do not agree. Of whatever type the
    orientation is, DALI takes its first two bytes."""
    name, side = bytes(tiff[:2]), False
    order = "<" if name == b"II" else ">"
    try:
        mark, directory = struct.unpack_from(order + "HI", tiff, 2)
        if mark != _TIFF:
            return False
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        seen = False
        for entry in range(entries):
            tag, _, count, place = struct.unpack_from(order + "HHII", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION and not seen:
                seen = True
                side = 5 <= (place & 0xFFFF if order == "<" else place >> 16) <= 8
            beyond = _NUMBERS.get(tag, count if tag in _TEXTS and count > 4 else 0)
            if beyond and place + beyond > len(tiff):
                return None if side else False
    except struct.error:  # it breaks off
        return None if side else False
    return None if side and name not in (b"II", b"MM") else side
