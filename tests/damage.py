"""Damage to files, at random: what disks, networks and copies do to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Damage = Callable[[bytes, np.random.Generator], bytes]


def flipped(data: bytes, generator: np.random.Generator) -> bytes:
    """One bit is another."""
    at, bit = int(generator.integers(len(data))), int(generator.integers(8))
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def truncated(data: bytes, generator: np.random.Generator) -> bytes:
    """The end is missing."""
    return data[: int(generator.integers(1, len(data)))]


def zeroed(data: bytes, generator: np.random.Generator) -> bytes:
    """A quarter is zeros, as where a block was never written."""
    size = len(data) // 4
    at = int(generator.integers(len(data) - size))
    return data[:at] + bytes(size) + data[at + size :]


def emptied(data: bytes, generator: np.random.Generator) -> bytes:
    """Nothing is left."""
    return b""


DAMAGES: dict[str, Damage] = {"flipped": flipped, "truncated": truncated, "zeroed": zeroed, "emptied": emptied}
