"""Whole numbers for a launch. Triton's own functions of these names cost the host microseconds a call."""

from __future__ import annotations


def cdiv(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below ``number``, which is at least 1."""
    return 1 << (number - 1).bit_length()
