"""Huffman tables of JPEG files (ITU-T T.81, annex C): as they stand in a file, to decode with and to encode with.

A table is its definition's bytes: of each length from 1 to 16 bits how many codes, then the symbols in the order of
their codes. A DC symbol is a category: how many bits of the difference follow. An AC symbol is the zeros before a
coefficient and the bits that follow; (0, 0) ends the block, (15, 0) stands for 16 zeros. R: the tables of one scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LONGEST = 16  # bits of a code
SHORT = 10  # bits of those that are looked up in little memory, which stays in the innermost cache
DC_CATEGORIES = 12  # of 8-bit samples, as of AC's is one less
BLOCK_ENDED = 128  # as an advance: more than any block holds
_LENGTHS = np.arange(1, LONGEST + 1)
_LARGEST_CATEGORY = 15  # that a table may name, though a file of 8-bit samples has no use for it
_END, _SIXTEEN_ZEROS = 0x00, 0xF0
# T.81's tables K.3 and K.4, which have a code for every category.
STANDARD_LUMINANCE_DC = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, *range(DC_CATEGORIES)])
STANDARD_CHROMINANCE_DC = bytes([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, *range(DC_CATEGORIES)])


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of one scan, a row each.

    Attributes:
        short: uint16 (R, 2**SHORT), by the next bits: the entry of a code that has no more bits than these, 0 else.
        long: uint16 (R, 2**LONGEST), the same of all codes; 0 where no code, or none that 8-bit samples may have.
            An entry of DC is the code's bits + 32 * category, one of AC the bits of the code and of the coefficient
            + 32 * by how many places of the block it goes on.
        codes: int64 (R, DC_CATEGORIES), of a table of DC: its bits + 32 * code, 0 where it has none.
    """

    short: NDArray[np.uint16]
    long: NDArray[np.uint16]
    codes: NDArray[np.int64]


@lru_cache(maxsize=32)  # most files have the standard tables; one takes 0.1 to 0.8 MiB
def tables(dc: tuple[bytes, ...], ac: tuple[bytes, ...]) -> Tables | None:
    """Those tables, first DC's, as rows; None where one of them is none."""
    rows = len(dc) + len(ac)
    short, long = np.zeros((rows, 1 << SHORT), np.uint16), np.zeros((rows, 1 << LONGEST), np.uint16)
    codes = np.zeros((rows, DC_CATEGORIES), np.int64)
    for row, table in enumerate(dc + ac):
        lengths, symbols = np.repeat(_LENGTHS, list(table[:LONGEST])), np.frombuffer(table, np.uint8)[LONGEST:]
        # Codes of rising length, counted up from 0: so they lie in the order of what they stand for in the lookup.
        widths = 1 << (LONGEST - lengths)
        if len(lengths) != len(symbols) or len(symbols) > 256 or widths.sum() >= 1 << LONGEST:  # all ones is no code
            return None
        if row < len(dc) and any(symbols > _LARGEST_CATEGORY):  # libjpeg refuses these even where they are not used
            return None
        entries = _dc_entries(lengths, symbols) if row < len(dc) else _ac_entries(lengths, symbols)
        _fill(long[row], entries, widths)
        shorter = lengths <= SHORT
        _fill(short[row], entries[shorter], widths[shorter] >> (LONGEST - SHORT))
        if row < len(dc):
            starts = np.cumsum(widths) - widths
            known = symbols < DC_CATEGORIES
            codes[row, symbols[known]] = (lengths + 32 * (starts >> (LONGEST - lengths)))[known]
    return Tables(short=short, long=long, codes=codes)


def _fill(lookup: NDArray[np.uint16], entries: NDArray[np.int64], widths: NDArray[np.int64]) -> None:
    lookup[: widths.sum()] = np.repeat(entries, widths)


def _dc_entries(lengths: NDArray[np.int64], symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.where(symbols < DC_CATEGORIES, lengths + 32 * symbols.astype(np.int64), 0)


def _ac_entries(lengths: NDArray[np.int64], symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    zeros, bits = np.divmod(symbols.astype(np.int64), 16)
    entries = lengths + bits + 32 * (zeros + 1)
    usual = (bits > 0) & (bits < DC_CATEGORIES - 1) | (symbols == _SIXTEEN_ZEROS)
    return np.where(symbols == _END, lengths + 32 * BLOCK_ENDED, np.where(usual, entries, 0))
