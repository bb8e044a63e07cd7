"""Offsets of the fused trunk's tensors beyond 2^31 elements, and that its six operators stay inside theirs.

Every set of offsets is worked out anew in Python's exact integers, of single programs far into tensors without memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.interpreted_memory import touched
from tests.kernel_checks import needs_interpreter

triton = pytest.importorskip("triton")
convolution: Any = pytest.importorskip("fastselfie.kernels.fused.convolution")
backward: Any = pytest.importorskip("fastselfie.kernels.fused.convolution_backward")
normalisation: Any = pytest.importorskip("fastselfie.kernels.fused.normalisation")
partial_sums: Any = pytest.importorskip("fastselfie.kernels.fused.partial_sums")
tl: Any = triton.language

pytestmark = needs_interpreter
FLOATS, HALVES = (torch.float32, 1.0), (torch.bfloat16, 1.0)
C, O, ROWS, COLUMNS, DEPTH = 48, 96, 32, 64, 16
BLOCK, FAR = 2**26, 2**40  # a block of rows, and how many rows there are
H, W = 5, 7
SECOND = range(COLUMNS, O)  # the columns of the second of two programs along them
SIZES: dict[str, Any] = {"C": C, "O": O, "ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH, "DOT": tl.float32}


def rows_at(block: int, size: int = ROWS) -> range:
    rows = range(block * size, (block + 1) * size)
    assert rows[0] * 16 > 2**31
    return rows


def elements(rows: Any, width: int, columns: range | None = None) -> set[int]:
    return {row * width + column for row in rows for column in columns or range(width)}


def sums_at(block: int, width: int, columns: range) -> set[int]:
    return {(2 * block + i) * width + column for i in range(2) for column in columns}


def taps(rows: range, side: int, stride: int) -> set[int]:
    """The source rows of output rows, without what lies in the padding."""
    out_h, out_w = -(-H // stride), -(-W // stride)
    found = set()
    for row in rows:
        image, i, j = row // (out_h * out_w), row // out_w % out_h, row % out_w
        for k in range(side):
            for l in range(side):
                y, x = i * stride + k - side // 2, j * stride + l - side // 2
                if 0 <= y < H and 0 <= x < W:
                    found.add((image * H + y) * W + x)
    return found


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolution(side: int, stride: int) -> None:
    moves = side > 1 or stride > 1
    given: dict[str, Any] = {
        "x": HALVES, "affine": FLOATS if side == 1 else None, "weight": HALVES, "residual": HALVES, "y": HALVES,
        "partial": FLOATS, "rows": FAR, "SIDE": side, "STRIDE": stride, "HEIGHT": H * moves, "WIDTH": W * moves,
    }  # fmt: skip
    programs = 2 * BLOCK + 2, 1, 1
    found = touched(convolution._convolution_kernel, (2 * BLOCK + 1, 0, 0), given | SIZES, programs=programs)
    rows = rows_at(BLOCK)
    assert found["x"].loaded == elements(taps(rows, side, stride) if moves else rows, C)
    assert found["weight"].loaded == elements(SECOND, side * side * C)
    assert found["residual"].loaded == found["y"].stored == elements(rows, O, SECOND)
    assert found["partial"].stored == sums_at(BLOCK, O, SECOND)
    if side == 1:
        assert found["affine"].loaded == set(range(2 * C))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_input(stride: int) -> None:
    """Here C is the wider."""
    given: dict[str, Any] = {
        "dy": HALVES, "weight": HALVES, "x": HALVES, "affine": FLOATS, "mean": FLOATS, "branch": HALVES, "dz": HALVES,
        "partial": FLOATS, "rows": FAR, "STRIDE": stride, "HEIGHT": H if stride > 1 else 0,
        "WIDTH": W if stride > 1 else 0,
    }  # fmt: skip
    sizes = SIZES | {"C": O, "O": C}
    found = touched(
        backward._convolution_input_kernel, (2 * BLOCK + 1, 0, 0), given | sizes, programs=(2 * BLOCK + 2, 1, 1)
    )
    rows = rows_at(BLOCK)
    assert found["dy"].loaded == elements(rows, C)
    assert found["weight"].loaded == elements(range(C), O, SECOND)
    assert found["x"].loaded == found["dz"].stored == elements(rows, O, SECOND)
    assert found["partial"].stored == sums_at(BLOCK, O, SECOND)
    places = [(row // (H * W), row // W % H, row % W) for row in rows]
    taken = [(image * 3 + y // 2) * 4 + x // 2 for image, y, x in places if y % 2 == x % 2 == 0]
    assert found["branch"].loaded == elements(taken if stride > 1 else rows, O, SECOND)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_weight(stride: int) -> None:
    given: dict[str, Any] = {
        "dy": HALVES, "x": HALVES, "affine": FLOATS, "partial": FLOATS, "rows": FAR, "steps": 2, "STRIDE": stride,
        "HEIGHT": H if stride > 1 else 0, "WIDTH": W if stride > 1 else 0,
    }  # fmt: skip
    found = touched(
        backward._convolution_weight_kernel,
        (1, BLOCK, 0),
        given | SIZES | {"ROWS": COLUMNS},
        programs=(2, BLOCK + 1, 1),
    )
    rows = rows_at(BLOCK, 2 * DEPTH)
    assert found["dy"].loaded == elements(rows, O, SECOND)
    assert found["x"].loaded == elements(taps(rows, 1, stride), C)
    assert found["partial"].stored == {(BLOCK * O + o) * C + c for o in SECOND for c in range(C)}


ALONE: dict[str, Any] = {"C": O, "ROWS": ROWS, "CHANNELS": COLUMNS}


def test_normalise() -> None:
    given: dict[str, Any] = {"x": HALVES, "affine": FLOATS, "out": HALVES, "rows": FAR}
    found = touched(normalisation._normalise_kernel, (BLOCK, 1, 0), given | ALONE, programs=(BLOCK + 1, 2, 1))
    assert found["x"].loaded == found["out"].stored == elements(rows_at(BLOCK), O, SECOND)
    assert found["affine"].loaded == {i * O + column for i in range(2) for column in SECOND}


def test_normalisation_sums() -> None:
    given: dict[str, Any] = {"da": HALVES, "x": HALVES, "affine": FLOATS, "mean": FLOATS, "partial": FLOATS}
    given |= {"rows": FAR, "steps": 2}
    found = touched(normalisation._normalisation_sums_kernel, (BLOCK, 1, 0), given | ALONE, programs=(BLOCK + 1, 2, 1))
    assert found["da"].loaded == found["x"].loaded == elements(rows_at(BLOCK, 2 * ROWS), O, SECOND)
    assert found["partial"].stored == sums_at(BLOCK, O, SECOND)


def test_normalisation_input() -> None:
    given: dict[str, Any] = {"da": HALVES, "x": HALVES, "affine": FLOATS, "pull": FLOATS, "around": HALVES}
    given |= {"dx": HALVES, "rows": FAR}
    found = touched(normalisation._normalisation_input_kernel, (BLOCK, 1, 0), given | ALONE, programs=(BLOCK + 1, 2, 1))
    expected = elements(rows_at(BLOCK), O, SECOND)
    assert found["da"].loaded == found["x"].loaded == found["around"].loaded == found["dx"].stored == expected


def test_partial_sums() -> None:
    """A stretch of three blocks, the last columns of three."""
    N, steps = 2 * 80, 3
    given: dict[str, Any] = {"partial": FLOATS, "out": (torch.float64, 1.0), "rows": FAR, "steps": steps}
    sizes: dict[str, Any] = {"N": N, "ROWS": 16, "COLUMNS": 64}
    found = touched(partial_sums._partial_sums_kernel, (BLOCK, 2, 0), given | sizes, programs=(BLOCK + 1, 3, 1))
    columns = range(128, N)
    assert found["partial"].loaded == elements(rows_at(BLOCK, 16 * steps), N, columns)
    assert found["out"].stored == {BLOCK * N + column for column in columns}
