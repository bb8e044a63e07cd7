"""Huffman tables of JPEG files (ITU-T T.81, annex C): from their definitions to what numba decodes and encodes with.

Needs the extra `markers`, so it is imported where it is called. A definition is as in a file: of each length from 1 to
16 bits how many codes, then the symbols in the order of their codes. A DC symbol is a category: how many bits of the
difference follow. An AC symbol is the zeros before a coefficient and the bits that follow; (0, 0) ends the block,
(15, 0) stands for 16 zeros. R: the tables of one scan.

numba takes what it compiled from disk while that function's own file is unchanged: whoever changes a constant here
also touches `restart_coding`.
"""

from __future__ import annotations

import functools
import pickle

import numba
import numpy as np

LONGEST = 16  # bits of a code
SHORT = 10  # bits of those that are looked up at once, in memory that stays in the innermost cache
LARGEST_CATEGORY = 11  # of DC of 8-bit samples; AC's is one less
BLOCK_ENDED = 128  # as an advance: more than any block holds
_END, _SIXTEEN_ZEROS = 0x00, 0xF0


def compiled(function):
    """``function`` compiled when it is first called, and kept on disk where that is possible."""
    try:
        quick = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        quick = numba.njit(nogil=True)(function)

    @functools.wraps(function)
    def call(*arguments):
        nonlocal quick
        try:
            return quick(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError):  # the disk is full, or a crash cut short what was kept
            quick = numba.njit(nogil=True)(function)
            return quick(*arguments)

    return call


@compiled
def lookups(definitions, dc):
    """Args: definitions: uint8 (R, 272), right ones, see `fastselfie.pipelines.jpeg_scan`. dc: the first are of DC.

    Returns:
        short: uint16 (R, 2**SHORT), by the next bits: the entry of a code that has no more bits than these, 0 else.
        starts: int64 (R,), the first LONGEST bits with which a longer code can start.
        long: uint16 (R, .), by the next LONGEST bits less these: the entry of a longer code, 0 where there is none.
            An entry of DC is the code's bits + 32 * category, one of AC the bits of the code and of the coefficient
            + 32 * by how many places of the block it goes on; 0 if 8-bit samples may have no such symbol.
        codes: int64 (R, 256), by the symbol: the code's bits + 32 * code, 0 where it has none.
    """
    # All indices are within bounds, as the codes of a right definition have no more bits than they are said to have.
    rows = definitions.shape[0]
    starts = np.zeros(rows, np.int64)
    for row in range(rows):
        for length in range(1, SHORT + 1):
            starts[row] += np.int64(definitions[row, length - 1]) << (LONGEST - length)
    short = np.zeros((rows, 1 << SHORT), np.uint16)
    long = np.zeros((rows, (1 << LONGEST) - starts.min()), np.uint16)
    codes = np.zeros((rows, 256), np.int64)
    for row in range(rows):
        place = code = 0
        for length in range(1, LONGEST + 1):
            code <<= 1
            for _ in range(definitions[row, length - 1]):
                symbol = np.int64(definitions[row, LONGEST + place])
                entry = _dc_entry(length, symbol) if row < dc else _ac_entry(length, symbol)
                codes[row, symbol] = length + 32 * code
                if length <= SHORT:
                    first, last = code << (SHORT - length), (code + 1) << (SHORT - length)
                    for bits in range(first, last):
                        short[row, bits] = entry
                else:
                    first, last = code << (LONGEST - length), (code + 1) << (LONGEST - length)
                    for bits in range(first - starts[row], last - starts[row]):
                        long[row, bits] = entry
                place += 1
                code += 1
    return short, starts, long, codes


@numba.njit(inline="always")
def _dc_entry(length, symbol):
    return length + 32 * symbol if symbol <= LARGEST_CATEGORY else 0


@numba.njit(inline="always")
def _ac_entry(length, symbol):
    bits = symbol & 15
    if symbol == _END:
        return length + 32 * BLOCK_ENDED
    if symbol != _SIXTEEN_ZEROS and not 0 < bits < LARGEST_CATEGORY:
        return 0
    return length + bits + 32 * (symbol // 16 + 1)
