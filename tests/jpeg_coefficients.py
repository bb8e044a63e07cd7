"""What a JPEG file of one Huffman-coded sequential scan holds, by a slow decoder that shares nothing with the product.

It reads bits as text, "0" and "1", and knows nothing of damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

Blocks = list[list[int]]  # of 64 coefficients each, in zigzag order, DC as it is


@dataclass(frozen=True)
class Coded:
    """Segments up to the scan's (marker, body), the blocks of each MCU, interval by interval, and the markers between
    the intervals."""

    segments: list[tuple[int, bytes]]
    intervals: list[list[Blocks]]
    markers: list[int]


def coded(data: bytes) -> Coded:
    """All of it."""
    segments, rest = _segments(data)
    assert rest.endswith(b"\xff\xd9")
    pieces = re.split(rb"\xff([\xd0-\xd7])", rest[:-2])
    frame = next(body for marker, body in segments if marker in (0xC0, 0xC1))
    blocks = [(frame[at] >> 4) * (frame[at] & 15) for at in range(7, len(frame), 3)]
    blocks = blocks if len(blocks) > 1 else [1]
    scan, tables = segments[-1][1], _tables(segments)
    layout = [
        (component, tables[scan[2 + 2 * component] >> 4], tables[16 + (scan[2 + 2 * component] & 15)])
        for component, count in enumerate(blocks)
        for _ in range(count)
    ]
    return Coded(segments, [list(_mcus(piece, layout)) for piece in pieces[::2]], [piece[0] for piece in pieces[1::2]])


def _segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    found, at = [(0, b"")], 2
    while found[-1][0] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4])
        found.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return found[1:], data[at:]


def _tables(segments: list[tuple[int, bytes]]) -> dict[int, dict[str, int]]:
    """Of each table its codes as text and what they stand for."""
    found: dict[int, dict[str, int]] = {}
    for body in (body for marker, body in segments if marker == 0xC4):
        at = 0
        while at < len(body):
            name, counts, symbols, code = body[at], body[at + 1 : at + 17], iter(body[at + 17 :]), 0
            found[name] = {}
            for length, count in enumerate(counts, 1):
                for _ in range(count):
                    found[name][f"{code:0{length}b}"] = next(symbols)
                    code += 1
                code *= 2
            at += 17 + sum(counts)
    return found


def _mcus(piece: bytes, layout: list[tuple[int, dict[str, int], dict[str, int]]]) -> Iterator[Blocks]:
    """The MCUs between two markers."""
    bits = "".join(f"{byte:08b}" for byte in piece.replace(b"\xff\x00", b"\xff"))
    at, predicted = 0, [0, 0, 0, 0]

    def symbol(table: dict[str, int]) -> int:
        nonlocal at
        stop = next(stop for stop in range(at + 1, len(bits) + 1) if bits[at:stop] in table)
        code, at = bits[at:stop], stop
        return table[code]

    def number(size: int) -> int:
        nonlocal at
        text, at = bits[at : at + size], at + size
        return 0 if not size else int(text, 2) - (2**size - 1 if text[0] == "0" else 0)

    while len(bits) - at > 7 or "0" in bits[at:]:
        mcu = []
        for component, dc, ac in layout:
            predicted[component] += number(symbol(dc))
            block = [predicted[component]]
            while len(block) < 64:
                zeros, size = divmod(symbol(ac), 16)
                block += [0] * (63 if (zeros, size) == (0, 0) else zeros)
                block = [*block, number(size)][:64]
            mcu.append(block)
        yield mcu
