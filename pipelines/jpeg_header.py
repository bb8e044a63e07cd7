"""The header of a JPEG file as far as a decoder has to know it beforehand: shape, kind and how a viewer turns it.

Shapes: rows and columns are those of the stored image, before it is turned.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_START, _APP1, _SCAN, _END = b"\xff\xd8\xff", 0xE1, 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = 0xC2
_HUFFMAN = (0xC0, 0xC1, _PROGRESSIVE)  # the first two: baseline, extended
_SAMPLINGS = frozenset((0x11, 0x21, 0x12, 0x22, 0x41, 0x14))  # luma's samples across and down for one of each colour
_BLOCK = 8
_EXIF, _ORIENTATION, _SHORT = b"Exif\0\0", 0x0112, 3


class JpegHeader(NamedTuple):  # made for every image, and a dataclass takes longer
    """What the file says of itself.

    Attributes:
        marker: the kind of coding, 0xC0 for baseline.
        usual: Huffman-coded samples of 8 bits, grey or of three channels with a sampling that is in use.
        progressive: in several passes over the image. orientation: EXIF's, 1 to 8; 1 is upright.
        rows_at: where in the file the number of rows stands, two bytes; that of columns after it.
        channels: 1 or 3 of the usual kinds. mcu: rows and columns of pixels that are coded together, of those kinds.
        scan_at: behind the frame's segment, where the rest of the header begins.
    """

    rows: int
    columns: int
    marker: int
    usual: bool
    progressive: bool
    orientation: int
    rows_at: int
    channels: int
    mcu: tuple[int, int]
    scan_at: int

    @property
    def turned_shape(self) -> tuple[int, int]:
        """Rows and columns as a viewer shows it."""
        return (self.rows, self.columns) if self.orientation < 5 else (self.columns, self.rows)


def jpeg_header(data: memoryview) -> JpegHeader | None:
    """The header of a file's bytes; None where it has none that can be read, or is no JPEG file."""
    if data[:3] != _START:
        return None
    at, orientation, size = 2, 1, len(data)
    while at + 10 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a byte of padding
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAMES:
            bits, rows, columns = struct.unpack_from(">BHH", data, at + 4)
            frame = data[at + 9 : at + 2 + length]
            return JpegHeader(
                rows=rows, columns=columns, marker=marker,
                usual=marker in _HUFFMAN and bits == 8 and _usual_channels(frame), progressive=marker == _PROGRESSIVE,
                orientation=orientation, rows_at=at + 5, channels=frame[0] if frame else 0, mcu=_mcu(frame),
                scan_at=at + 2 + length,
            )  # fmt: skip
        if marker in (_SCAN, _END):
            return None
        if marker == _APP1 and data[at + 4 : at + 10] == _EXIF:
            orientation = _orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    return None


def first_scan(data: bytes, header: JpegHeader) -> int:
    """Offset at which the chain of segments behind the frame ends."""
    at = header.scan_at
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        at += 1 if data[at + 1] == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return at


def is_in_order(data: bytes, header: JpegHeader) -> bool:
    """Whether a scan begins there; DALI refuses files with stray bytes before it."""
    at = first_scan(data, header)
    return data[at : at + 2] == bytes((0xFF, _SCAN))


def _usual_channels(frame: memoryview) -> bool:
    """Is it grey, or luma and two of colour? Of the number of channels, and of each its name, sampling and table."""
    if len(frame) == 10 and frame[0] == 3:
        return frame[2] in _SAMPLINGS and frame[5] == frame[8] == 0x11
    return len(frame) == 4 and frame[0] == 1


def _mcu(frame: memoryview) -> tuple[int, int]:
    """Luma's samples for one of each colour, times the 8 of a block. Alone, grey is coded block by block."""
    if len(frame) < 10:
        return _BLOCK, _BLOCK
    across, down = divmod(frame[2], 16)
    return down * _BLOCK, across * _BLOCK


def _orientation(tiff: memoryview) -> int:
    """The orientation in an EXIF segment; 1 where it holds none that makes sense."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:  # it points beyond its end
        pass
    return 1
