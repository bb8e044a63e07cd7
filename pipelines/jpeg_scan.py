"""The segments of a JPEG file up to its entropy-coded data, of those files that have but one scan of all components.

ITU-T T.81, annex B. B: the blocks of 8 x 8 samples in one MCU, what is coded together of all components.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_START = b"\xff\xd8"
_BASELINE, _EXTENDED, _HUFFMAN, _SCAN, _QUANTISATION, _INTERVAL, _COMMENT = 0xC0, 0xC1, 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_PICTURES = b"MPF\0"  # an application segment that says where behind the image's end there are more
_SEQUENTIAL = b"\x00\x3f\x00"  # of a scan: all coefficients, all their bits
_AC = 16  # this added to a table's number
_LARGEST_CATEGORY = 15  # that a table of DC may name, though 8-bit samples have no use for it
_COMPONENTS = (1, 3, 4)
_MOST_BLOCKS = 10  # of an MCU of several components


class UnusualJpeg(Exception):  # noqa: N818 (what is unusual is the file)
    """It is damaged or of a kind that is left as it is."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A file's header and what it says of the one scan.

    Attributes:
        segments: in the file's order, each its marker and what follows its length; the last is the scan's.
        stop: where in the file they end. mcus: of the image. interval: MCUs between restart markers, 0 for none.
        components_B: whose each block of an MCU is. selectors: of each component its tables of DC and AC.
        tables: by class (0 DC, 16 AC) + number the definition: how many codes have 1 to 16 bits, and their symbols.
    """

    segments: list[tuple[int, bytes]]
    stop: int
    mcus: int
    interval: int
    components_B: list[int]
    selectors: list[tuple[int, int]]
    tables: dict[int, bytes]

    def header(self, interval: int, tables: dict[int, bytes]) -> bytes:
        """The file up to the entropy-coded data, with another ``interval`` and some other ``tables``, for a file that
        ends with the image."""
        parts = [_START]
        for marker, body in self.segments:
            if marker == _INTERVAL or (marker in _APPLICATION and body.startswith(_PICTURES)):
                continue
            if marker == _SCAN:
                parts.append(_segment(_INTERVAL, struct.pack(">H", interval)))
            if marker == _HUFFMAN and any(name in tables for name, _ in _tables(body)):
                body = b"".join(bytes([name]) + tables.get(name, table) for name, table in _tables(body))
            parts.append(_segment(marker, body))
        return b"".join(parts)


def read_scan(data: bytes) -> Scan:
    """The header of a file.

    Raises:
        UnusualJpeg: it is damaged, or not Huffman-coded in 8 bits and one sequential scan of 1, 3 or 4 components.
    """
    segments, stop = _segments(data)
    tables: dict[int, bytes] = {}
    quantisations: set[int] = set()
    frames, interval = [], 0
    for marker, body in segments:
        if marker == _HUFFMAN:
            tables.update(_tables(body))
        elif marker == _QUANTISATION:
            quantisations.update(_quantisations(body))
        elif marker == _INTERVAL:
            _expect(len(body) == 2)
            (interval,) = struct.unpack(">H", body)
        elif marker in (_BASELINE, _EXTENDED):
            frames.append(body)
    _expect(len(frames) == 1)
    mcus, components, components_B = _frame(frames[0])
    selectors = _selectors(segments[-1][1], [name for name, _ in components])
    _expect(all(dc in tables and ac in tables for dc, ac in selectors))
    _expect(all(quantisation in quantisations for _, quantisation in components))
    return Scan(
        segments=segments, stop=stop, mcus=mcus, interval=interval, components_B=components_B, selectors=selectors,
        tables=tables,
    )  # fmt: skip


def _expect(usual: bool) -> None:
    if not usual:
        raise UnusualJpeg


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _segments(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Marker and body of each segment up to that of the scan, and where that ends."""
    _expect(data[:2] == _START)
    segments, at = [], 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        _expect(at + 4 <= len(data))
        first, marker, length = struct.unpack_from(">BBH", data, at)
        stop = at + 2 + length
        _expect(first == 0xFF and length >= 2 and stop <= len(data))
        segments.append((marker, data[at + 4 : stop]))
        if marker == _SCAN:
            return segments, stop
        _expect(
            marker in (_BASELINE, _EXTENDED, _HUFFMAN, _QUANTISATION, _INTERVAL, _COMMENT) or marker in _APPLICATION
        )
        at = stop


def _tables(body: bytes) -> list[tuple[int, bytes]]:
    """Name and definition of each table in a segment of Huffman tables."""
    found, at = [], 0
    while at < len(body):
        stop = at + 17 + sum(body[at + 1 : at + 17])
        _expect(stop <= len(body) and body[at] & 0xEC == 0)  # class 0 or 1, number 0 to 3
        _expect(_is_table(body[at + 1 : stop], dc=body[at] < _AC))
        found.append((body[at], body[at + 1 : stop]))
        at = stop
    return found


def _is_table(table: bytes, dc: bool) -> bool:
    """Does it keep to the standard, as libjpeg demands it? All ones is no code."""
    symbols, used = table[16:], sum(count << (16 - length) for length, count in enumerate(table[:16], 1))
    return len(symbols) <= 256 and used < 1 << 16 and not (dc and max(symbols, default=0) > _LARGEST_CATEGORY)


def _quantisations(body: bytes) -> list[int]:
    """The numbers of the quantisation tables in a segment."""
    found, at = [], 0
    while at < len(body):
        bits, number = divmod(body[at], 16)
        at += 1 + 64 * (1 + bits)  # of 8 or 16 bits
        _expect(bits < 2 and number < 4 and at <= len(body))
        found.append(number)
    return found


def _frame(body: bytes) -> tuple[int, list[tuple[int, int]], list[int]]:
    """The image's MCUs; of each component its name and quantisation table; and whose the blocks of an MCU are."""
    _expect(len(body) >= 6)
    bits, rows, columns, count = struct.unpack_from(">BHHB", body)
    _expect(bits == 8 and rows > 0 and columns > 0 and count in _COMPONENTS and len(body) == 6 + 3 * count)
    components = [(body[at], body[at + 2]) for at in range(6, len(body), 3)]
    samplings = [divmod(body[at + 1], 16) for at in range(6, len(body), 3)]  # across and down
    _expect(all(1 <= factor <= 4 for sampling in samplings for factor in sampling))
    if count == 1:  # nothing is interleaved, so its factors say nothing
        samplings = [(1, 1)]
    across, down = (8 * max(factors) for factors in zip(*samplings, strict=True))
    components_B = [index for index, (h, v) in enumerate(samplings) for _ in range(h * v)]
    _expect(len(components_B) <= _MOST_BLOCKS and len({name for name, _ in components}) == count)
    return -(-columns // across) * -(-rows // down), components, components_B


def _selectors(body: bytes, names: list[int]) -> list[tuple[int, int]]:
    """The tables of DC and AC of each component, from the scan's header."""
    count = len(names)
    _expect(len(body) == 4 + 2 * count and body[0] == count and body[1:-3:2] == bytes(names))
    _expect(body[-3:] == _SEQUENTIAL)
    return [(pair >> 4, _AC + (pair & 15)) for pair in body[2:-3:2]]
