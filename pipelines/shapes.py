"""The ten shapes that are the classes of synthetic scenes, as signed distances.

Each function takes the coordinates u (to the right) and v (downwards) of points, of any one shape and in units of the
shape's radius, and gives the distance to the outline, negative inside, exact near the edges. Shapes fill about the unit
circle. Only correctly rounded operations, so that results agree to the bit wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[Any]  # fp32 throughout; NumPy's stubs give Any for most of the arithmetic between fp32 and float


def _length(u: Plane, v: Plane) -> Plane:
    length: Plane = np.sqrt(u * u + v * v)
    return length


def _box(u: Plane, v: Plane, half_u: float, half_v: float) -> Plane:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _disc(u: Plane, v: Plane) -> Plane:
    return _length(u, v) - 0.92


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(_length(u, v) - 0.7) - 0.26


def _square(u: Plane, v: Plane) -> Plane:
    return _box(u, v, 0.78, 0.78)


def _triangle(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) * 0.87 - (v + 0.98) * 0.49, v - 0.7)


def _cross(u: Plane, v: Plane) -> Plane:
    return np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95))


def _star(u: Plane, v: Plane) -> Plane:
    """Two reflections fold all five rays onto the upper one; 0.809 and 0.588 are the cosine and sine of 36 degrees."""
    u, v = np.abs(u), -v
    for side in (0.809017, -0.809017):
        across = 2 * np.maximum(side * u - 0.587785 * v, 0)
        u, v = u - side * across, v + 0.587785 * across
    return np.abs(u) * 0.923 + (v - 1) * 0.384


def _crescent(u: Plane, v: Plane) -> Plane:
    return np.maximum(_length(u, v) - 0.98, 0.78 - _length(u - 0.48, v + 0.14))


def _hourglass(u: Plane, v: Plane) -> Plane:
    return np.maximum((np.abs(u) - np.abs(v)) * 0.7 - 0.04, _box(u, v, 0.85, 0.88))


def _bars(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.minimum(np.abs(np.abs(v) - 0.68), np.abs(v)) - 0.2, np.abs(u) - 0.88)


def _arch(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(_length(u, np.minimum(v + 0.15, 0)) - 0.62) - 0.25, v - 0.85)


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "crescent": _crescent,
    "hourglass": _hourglass,
    "bars": _bars,
    "arch": _arch,
}
