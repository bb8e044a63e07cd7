"""Randomness is a function, not a state.

Every random choice about a sample is a pure function of (seed, epoch, sample, purpose). The generator is SplitMix64
(Steele, Lea, Flood 2014) used as a counter: the four keys are absorbed into a 64-bit state, and draw d of that state is
``mix(state + (d + 1) * GAMMA)``. Written with wrapping int64 arithmetic alone, so that NumPy arrays, CPU tensors and
CUDA tensors give the same bits.

Shapes: B samples, K draws a sample, N items to permute.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_ROUNDS, _LEAST_SIDE = 12, 4

STREAM = 2
"""The number of the stream: another one when another order, crop or mask comes of the same seed. A run is finished
under the number that it was begun under."""


class Purpose(IntEnum):
    """What a number is drawn for. Values are part of the format of a run: never renumber, only append."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MASK = 4
    DROPOUT = 5
    INIT = 6
    LABELS = 7
    SCENE = 8
    HELD_OUT = 9
    SUBSTITUTE = 10
    BATCH_MASK = 11
    HOLD_BACK = 12


def _signed(value: int) -> int:
    """The int64 with the 64 bits of ``value``, which is in [0, 2**64)."""
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    """SplitMix64's finaliser on a Python int; an unsigned 64-bit result."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _absorb_int(state: int, value: int) -> int:
    return _mix_int(state ^ _mix_int(value + _GAMMA))


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """``x >> bits`` with zeros shifted in: int64's own shift copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _logical_shift(x, 27)) * _signed(_MIX_2)
    return x ^ _logical_shift(x, 31)


def _absorb(state: Tensor, value: Tensor) -> Tensor:
    return _mix(state ^ _mix(value + _signed(_GAMMA)))


def scalar_key(seed: int, purpose: Purpose, *counters: int) -> int:
    """A 63-bit key for generators that take a seed (dropout, initialisation): a function of its arguments alone."""
    state = _absorb_int(_absorb_int(0, seed), int(purpose))
    for counter in counters:
        state = _absorb_int(state, counter)
    return state >> 1


def random_bits(seed: int, purpose: Purpose, epoch_B: Tensor, sample_B: Tensor, draws: int) -> Tensor:
    """Independent 63-bit non-negative integers, ``draws`` a sample.

    Args:
        seed: any Python int; its low 64 bits count.
        epoch_B, sample_B: int64 of one shape (B,), on the device on which the numbers are wanted.

    Returns:
        int64 (B, draws), uniform on [0, 2**63).
    """
    base = _absorb_int(_absorb_int(0, seed), int(purpose))
    state_B = _absorb(_absorb(torch.full_like(epoch_B, _signed(base)), epoch_B), sample_B)
    counter_K = torch.arange(1, draws + 1, device=sample_B.device, dtype=torch.int64) * _signed(_GAMMA)
    return _logical_shift(_mix(state_B[:, None] + counter_K), 1)


def uniform(seed: int, purpose: Purpose, epoch_B: Tensor, sample_B: Tensor, draws: int) -> Tensor:
    """Uniform numbers on [0, 1) with 53 random bits: fp64 (B, draws). Arguments as in `random_bits`."""
    bits = random_bits(seed, purpose, epoch_B, sample_B, draws)
    return _logical_shift(bits, 10).to(torch.float64) * 2.0**-53


def integers(seed: int, purpose: Purpose, epoch_B: Tensor, sample_B: Tensor, draws: int, high: int) -> Tensor:
    """Uniform integers on [0, high): int64 (B, draws). ``high`` is at most 2**20, so the bias of the fixed-point
    product (below high / 2**43) is out of reach of any test. Arguments as in `random_bits`."""
    if not 0 < high <= 1 << 20:
        raise ValueError(f"high must be in [1, 2**20], got {high}")
    bits = random_bits(seed, purpose, epoch_B, sample_B, draws)
    return (_logical_shift(bits, 20) * high) >> 43


def permutations(seed: int, purpose: Purpose, epoch_B: Tensor, sample_B: Tensor, items: int) -> Tensor:
    """One uniform permutation of [0, items) a sample: int64 (B, items). Arguments as in `random_bits`."""
    return random_bits(seed, purpose, epoch_B, sample_B, items).argsort(dim=1, stable=True)


def shuffled(key: int | NDArray[np.uint64], place_B: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """What lies at each place of a shuffled [0, size), place by place: the cost is that of the places asked for.

    A Feistel network of twelve rounds (Luby, Rackoff 1988) permutes a grid that is hardly larger than ``size``; what
    it sends out of [0, size) goes through again until it is inside (Black, Rogaway 2002). Round r adds to one
    coordinate draw r * 2**20 + other coordinate of the generator whose state is ``key``. Computed on the host: whether
    to go on is a look at the numbers, for which a device would have to be waited for.

    Args:
        key: `scalar_key` of what the permutation depends on, or one a place, uint64 (B,).
        place_B: int64 (B,), each in [0, size). size: at most 2**40.

    Returns:
        int64 (B,), each in [0, size); for one key different places give different numbers.
    """
    if not 0 < size <= 1 << 40:
        raise ValueError(f"size must be in [1, 2**40], got {size}")
    key_B = np.broadcast_to(np.asarray(key, dtype=np.uint64), place_B.shape)
    at_B = _feistel(key_B, place_B.astype(np.uint64), *_grid(size))
    while len(outside_K := np.flatnonzero(at_B >= size)):
        at_B[outside_K] = _feistel(key_B[outside_K], at_B[outside_K], *_grid(size))
    return at_B.astype(np.int64)


def _grid(size: int) -> tuple[int, int]:
    """Columns and rows. An even number of columns makes odd permutations as likely as even ones; grids of fewer than
    four would have to be mixed for longer."""
    columns = max(math.isqrt(size - 1) + 1, _LEAST_SIDE)
    columns += columns % 2
    return columns, max(-(-size // columns), _LEAST_SIDE)


def _feistel(key_B: NDArray[np.uint64], place_B: NDArray[np.uint64], columns: int, rows: int) -> NDArray[np.uint64]:
    row_B, column_B = np.divmod(place_B, np.uint64(columns))
    for number in range(0, _ROUNDS, 2):
        column_B = _wrapped(column_B + _drawn(key_B, number, row_B, columns), columns)
        row_B = _wrapped(row_B + _drawn(key_B, number + 1, column_B, rows), rows)
    return row_B * np.uint64(columns) + column_B


def _wrapped(sum_B: NDArray[np.uint64], high: int) -> NDArray[np.uint64]:
    """``sum_B % high`` of numbers below 2 * high, without a division: what would be negative is huge."""
    return np.minimum(sum_B, sum_B - np.uint64(high))


def _drawn(key_B: NDArray[np.uint64], number: int, half_B: NDArray[np.uint64], high: int) -> NDArray[np.uint64]:
    """Integers on [0, high) by the formula of `integers`: draw ``number * 2**20 + half`` of the state ``key``."""
    x = key_B + (half_B + np.uint64((number << 20) + 1)) * np.uint64(_GAMMA)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return (((x ^ (x >> np.uint64(31))) >> np.uint64(21)) * np.uint64(high)) >> np.uint64(43)


def epoch_order(seed: int, epoch: int, size: int, count: int | None = None) -> Tensor:
    """The order in which epoch ``epoch`` visits a data set of ``size`` samples: int64 (size,), a permutation, or the
    first ``count`` of it, at the cost of these."""
    places = np.arange(size if count is None else min(count, size))
    return torch.from_numpy(shuffled(scalar_key(seed, Purpose.ORDER, epoch), places, size))
