"""Entropy-coded data of a JPEG file decoded and coded anew with other restart markers, by numba.

Needs the extra `markers`, so it is imported where it is called. Nothing checks indices in what numba compiles: what is
read is compared with the file's size, what is written has its `room`, and the lookups are as large as their indices.
All arithmetic is of int64; bits are at the low end of such a number.
B: the blocks of an MCU. R: tables, see `fastselfie.pipelines.huffman_tables`.
"""

from __future__ import annotations

import numba
import numpy as np

from fastselfie.pipelines.huffman_tables import BLOCK_ENDED, LONGEST, SHORT, compiled

DONE, DAMAGED, LACKING = 0, 1, 2
_REFILL = 32  # bits: more than the 27 of the longest code with what follows it
_LARGEST_DC = 2047  # what category 11 holds
_BLOCK_BYTES = 2 * (63 * 26 + 27 + 8) // 8 + 1  # of a block at most: codes, coefficients, and a zero after each byte
_MARKER_BYTES = 16  # what was kept back, padding and marker
_RESTART, _END = 0xD0, 0xD9
_BEYOND_SHORT = LONGEST - SHORT
_ALL_LONG = (1 << LONGEST) - 1


@compiled
def recode(data, at, layout, mcus, old, new, short, starts, long, codes):
    """The scan with a restart marker after every ``new`` MCUs.

    Args:
        data: the file, uint8 (size,). at: where in it the scan's data start. mcus: how many it has.
        layout: int64 (3, B), of each block its component (0 to 3), its row of DC and its row of AC.
        old, new: MCUs from marker to marker, 0 for none.
        short, starts, long: of R tables, see `fastselfie.pipelines.huffman_tables.lookups`. codes: those to write.

    Returns:
        what became of it; the scan's data with the marker of the image's end, uint8, where it is `DONE`; and which
        table of DC lacks a code, where one is `LACKING`.
    """
    out = np.empty(data.size - at + (data.size - at) // 4 + 65536, np.uint8)
    read, told = np.zeros(4, np.int64), np.zeros(4, np.int64)  # the values of DC that the next ones differ from
    room = layout.shape[1] * _BLOCK_BYTES + _MARKER_BYTES
    held = bits = lent = 0  # of the input: `lent` of the `bits` are zeros that stand in for what is missing
    kept = kept_bits = size = 0
    for mcu in range(mcus):
        if old > 0 and mcu > 0 and mcu % old == 0:
            at, right = _passed(data, at, bits - lent, _RESTART + (mcu // old - 1) % 8)
            if not right:
                return DAMAGED, out[:0], 0
            held = bits = lent = 0
            read[:] = 0
        if out.size - size < room:
            out = _moved(out, size, 2 * out.size + room)
        if new > 0 and mcu > 0 and mcu % new == 0:
            size = _marked(out, size, kept, kept_bits, _RESTART + (mcu // new - 1) % 8)
            kept = kept_bits = 0
            told[:] = 0
        for block in range(layout.shape[1]):
            component, dc, ac = layout[0, block], layout[1, block], layout[2, block]
            # The difference of DC, which is coded as the difference from another value.
            if bits < _REFILL:
                at, held, bits, lent = _filled(data, at, held, bits, lent)
            entry = _entry(short, starts, long, dc, held, bits)
            bits -= entry & 31
            category = entry >> 5
            bits -= category
            read[component] += _signed(held >> bits, category)
            difference = read[component] - told[component]
            if entry == 0 or abs(read[component]) > _LARGEST_DC or abs(difference) > _LARGEST_DC:
                return DAMAGED, out[:0], 0
            told[component] = read[component]
            category = _category(difference)
            code = codes[dc, category]
            if code == 0:
                return LACKING, out[:0], dc
            kept = ((kept << (code & 31)) | (code >> 5)) << category
            kept |= (difference if difference >= 0 else difference - 1) & ((1 << category) - 1)
            size, kept_bits = _flushed(out, size, kept, kept_bits + (code & 31) + category)
            # The codes and coefficients of AC, whose bits are copied: all that were read since the last time at once.
            place, copied = 1, bits
            while place < 64:
                if bits < _REFILL:
                    size, kept, kept_bits = _copied(out, size, kept, kept_bits, held, copied, bits)
                    at, held, bits, lent = _filled(data, at, held, bits, lent)
                    copied = bits
                entry = _entry(short, starts, long, ac, held, bits)
                if entry == 0:
                    return DAMAGED, out[:0], 0
                bits -= entry & 31
                place += entry >> 5
            size, kept, kept_bits = _copied(out, size, kept, kept_bits, held, copied, bits)
            if 64 < place <= BLOCK_ENDED or bits < lent:
                return DAMAGED, out[:0], 0
    at, right = _passed(data, at, bits - lent, _END)
    if not right:
        return DAMAGED, out[:0], 0
    out = _moved(out, size, size + _MARKER_BYTES)
    return DONE, out[: _marked(out, size, kept, kept_bits, _END)], 0


@numba.njit(inline="always")
def _moved(out, size, room):
    larger = np.empty(room, np.uint8)
    larger[:size] = out[:size]
    return larger


@numba.njit(inline="always")
def _filled(data, at, held, bits, lent):
    """At least 49 ``bits`` in ``held``, with zeros ``lent`` from where a marker stands or the file ends."""
    while bits <= 48:
        byte = np.int64(data[at]) if at < data.size else 0xFF
        if byte != 0xFF:
            at += 1
        elif at + 1 < data.size and data[at + 1] == 0:  # a zero after it: no marker
            at += 2
        else:
            byte = 0
            lent += 8
        held = (held << 8) | byte
        bits += 8
    return at, held, bits, lent


@numba.njit(inline="always")
def _entry(short, starts, long, row, held, bits):
    """The table's entry for the code that comes next, 0 where there is none. Of at least 16 ``bits``."""
    code = (held >> (bits - LONGEST)) & _ALL_LONG
    entry = np.int64(short[row, code >> _BEYOND_SHORT])
    if entry == 0 and code >= starts[row]:
        entry = np.int64(long[row, code - starts[row]])
    return entry


@numba.njit(inline="always")
def _signed(value, category):
    """The number that the last ``category`` bits of ``value`` stand for: those that start with a 0 are negative."""
    value &= (1 << category) - 1
    return value if category == 0 or value >> (category - 1) else value - (1 << category) + 1


@numba.njit(inline="always")
def _category(difference):
    category, rest = 0, abs(difference)
    while rest > 0:
        category += 1
        rest >>= 1
    return category


@numba.njit(inline="always")
def _copied(out, size, kept, kept_bits, held, start, bits):
    """The bits of ``held`` from ``start`` down to ``bits`` written or kept: at most 56, next to 7 that are kept."""
    kept = (kept << (start - bits)) | (held & ((1 << start) - 1)) >> bits
    size, kept_bits = _flushed(out, size, kept, kept_bits + start - bits)
    return size, kept, kept_bits


@numba.njit(inline="always")
def _flushed(out, size, kept, kept_bits):
    """All whole bytes of ``kept`` written: how many bytes ``out`` has then and how many bits are kept."""
    while kept_bits >= 8:
        kept_bits -= 8
        byte = (kept >> kept_bits) & 0xFF
        out[size] = byte
        size += 1
        if byte == 0xFF:
            out[size] = 0
            size += 1
    return size, kept_bits


@numba.njit(inline="always")
def _marked(out, size, kept, kept_bits, marker):
    """What is kept written, filled up with ones, and a marker: how many bytes ``out`` has then."""
    more = -kept_bits % 8
    size, _ = _flushed(out, size, (kept << more) | ((1 << more) - 1), kept_bits + more)
    out[size], out[size + 1] = 0xFF, marker
    return size + 2


@numba.njit(inline="always")
def _passed(data, at, unread, marker):
    """Behind ``marker``, and whether it stands there with nothing but padding before it."""
    while at + 1 < data.size and data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
        at += 1
    right = unread < 8 and at + 1 < data.size and data[at] == 0xFF and data[at + 1] == marker
    return at + 2, right
