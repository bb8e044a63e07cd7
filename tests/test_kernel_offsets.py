"""Offsets of tensors with more than 2^31 elements: single programs far into such tensors, without their memory.

Every set of offsets is worked out anew in Python's exact integers.
Shapes: as in the kernels; a row is a row of the kernel's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.interpreted_memory import touched
from tests.kernel_checks import needs_interpreter

triton = pytest.importorskip("triton")
channel_sums: Any = pytest.importorskip("fastselfie.kernels.fused.channel_sums")
indexing: Any = pytest.importorskip("fastselfie.kernels.fused.indexing")
location_head: Any = pytest.importorskip("fastselfie.kernels.fused.location_head")
head_backward: Any = pytest.importorskip("fastselfie.kernels.fused.location_head_backward")
patch_batch: Any = pytest.importorskip("fastselfie.kernels.fused.patch_batch")
patch_tokens: Any = pytest.importorskip("fastselfie.kernels.fused.patch_tokens")
backward: Any = pytest.importorskip("fastselfie.kernels.fused.patch_tokens_backward")
tl: Any = triton.language

pytestmark = needs_interpreter
BEYOND = 2**31
FLOATS, WHOLE = (torch.float32, 1.0), (torch.int64, 0)
HALVES = (torch.bfloat16, 0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _divide_kernel(first, quotients, remainders, SIZE: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, LANES)
    quotient, remainder = indexing.divide(first.to(tl.int64), lane, SIZE)
    tl.store(quotients + lane, quotient)
    tl.store(remainders + lane, remainder)


@pytest.mark.parametrize("first", [0, 5, BEYOND - 3, 2**40 + 12345])
@pytest.mark.parametrize("size", [1, 7, 17, 64, 82 * 224])
def test_divide(first: int, size: int) -> None:
    quotients, remainders = torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int32)
    _divide_kernel[(1,)](first, quotients, remainders, SIZE=size, LANES=64)
    found = list(zip(quotients.tolist(), remainders.tolist(), strict=True))
    assert found == [divmod(first + lane, size) for lane in range(64)]


H, W, P, N = 32, 32, 8, 16  # pixels, and places an image
IMAGE = H * W * 3
PATCHES: dict[str, Any] = {
    "rows": None, "corner": None, "flip": None, "places": None, "mean": FLOATS, "std": FLOATS, "out": HALVES,
    "pixels": (torch.uint8, 7), "total": 2**40, "blocks": 1, "stride_image": IMAGE, "stride_cell_y": 0,
    "stride_y": W * 3, "stride_cell_x": 0, "stride_x": 3, "stride_c": 1, "H": H, "W": W, "P": P, "CELL": 0, "PAD": 0,
    "REFLECT": False, "PACKED": False, "ROWS": 128, "COLUMNS": 8,
}  # fmt: skip


def patch_pixels(row: int, image: int | None = None) -> list[tuple[int, int, int]]:
    """Image, y and x of the pixels of a row of the output."""
    sample, place, line = row // (N * P), row // P % N, row % P
    return [
        (sample if image is None else image, place // 4 * P + line, place % 4 * P + column) for column in range(P)
    ]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("blocks", [1, 4])
def test_patch_batch(packed: bool, blocks: int) -> None:
    program = 2**25
    found = touched(
        patch_batch._kernel, (program, 0, 0), PATCHES | {"PACKED": packed, "blocks": blocks}, programs=(2**26, 1, 1)
    )
    rows = range(program * blocks * 128, (program + 1) * blocks * 128)
    assert rows[0] >= BEYOND
    assert found["out"].stored == {row * 3 * P + i for row in rows for i in range(3 * P)}
    pixels = [pixel for row in rows for pixel in patch_pixels(row)]
    assert found["pixels"].loaded == {b * IMAGE + y * W * 3 + x * 3 + c for b, y, x in pixels for c in range(3)}
    assert min(found["pixels"].loaded) > BEYOND


def test_patch_batch_with_resident_rows_and_places() -> None:
    given = PATCHES | {
        "rows": (torch.int64, 3_000_001),
        "places": WHOLE,
        "flip": (torch.bool, 0),
        "corner": (torch.int64, 1),
    }
    found = touched(patch_batch._kernel, (2**25, 0, 0), given | {"PAD": 1}, programs=(2**26, 1, 1))
    rows = range(2**25 * 128, (2**25 + 1) * 128)
    samples = {row // (N * P) for row in rows}
    assert found["rows"].loaded == found["flip"].loaded == samples
    assert found["corner"].loaded == {2 * sample + i for sample in samples for i in range(2)}
    assert found["places"].loaded == {row // P for row in rows}
    top_left = {(y, x) for y in range(P) for x in range(P)}
    assert found["pixels"].loaded == {3_000_001 * IMAGE + y * W * 3 + x * 3 + c for y, x in top_left for c in range(3)}


@pytest.mark.parametrize("far", [2**30, 2**34])
def test_patch_batch_of_far_cells(far: int) -> None:
    """One image may have strides of any size, too: 2^30 fits into 32 bits, three times as much does not."""
    cell_y, line, cell_x, column, channel = far + 3, far + 5, far + 7, far + 11, far + 13
    strides = {"stride_cell_y": cell_y, "stride_y": line, "stride_cell_x": cell_x, "stride_x": column}
    given = PATCHES | strides | {"CELL": 2, "stride_image": 1, "stride_c": channel}
    for cell in (2, 0):
        found = touched(patch_batch._kernel, (0, 0, 0), given | {"CELL": cell}, programs=(1, 1, 1))
        assert found["pixels"].loaded == {
            b + (y // 2 * cell_y + y % 2 * line + x // 2 * cell_x + x % 2 * column if cell else y * line + x * column)
            + c * channel
            for row in range(128)
            for b, y, x in patch_pixels(row)
            for c in range(3)
        }  # fmt: skip


def test_channel_sums() -> None:
    D, steps, stretch = 96, 2, 2**26
    given: dict[str, Any] = {"maps": HALVES, "partial": FLOATS, "rows": 2**40, "steps": steps}
    sizes = {"D": D, "ROWS": 32, "CHANNELS": 64}
    found = touched(channel_sums._kernel, (stretch, 1, 0), given | sizes, programs=(2**27, 2, 1))
    rows, channels = range(stretch * steps * 32, (stretch + 1) * steps * 32), range(64, D)
    assert found["maps"].loaded == {row * D + d for row in rows for d in channels}
    assert found["partial"].stored == {(2 * stretch + i) * D + d for i in range(2) for d in channels}


n, D, HW, m = 12, 64, 4, 4
CHANNELS = range(D)
TOKENS: dict[str, Any] = {
    "maps": HALVES, "statistics": FLOATS, "weight": FLOATS, "bias": FLOATS, "eps": 1e-5,
    "N": N, "VISIBLE": n, "HW": HW, "D": D, "CHANNELS": D,
}  # fmt: skip


def test_patch_tokens() -> None:
    given = TOKENS | {
        "u0": FLOATS, "positions": FLOATS, "places": WHOLE, "tokens": FLOATS, "features": HALVES,
        "inverse": (torch.int32, 0), "rows": 2**40, "ROWS": 16,
    }  # fmt: skip
    program = 2**28
    found = touched(patch_tokens._kernel, (program, 0, 0), given, programs=(2**29, 1, 1))
    rows = [divmod(row, 1 + N) for row in range(program * 16, (program + 1) * 16)]
    patches = [(image, token - 1) for image, token in rows if token]
    assert found["maps"].loaded == map_offsets(patches)
    tokens = {(image * (1 + n) + token) * D + d for image, token in rows if token <= n for d in CHANNELS}
    features = {(image * m + patch - n) * D + d for image, patch in patches if patch >= n for d in CHANNELS}
    assert (found["tokens"].stored, found["features"].stored) == (tokens, features)
    assert found["places"].loaded == {image * N + patch for image, patch in patches}
    assert found["inverse"].stored == {image * N for image, _ in patches}  # every place here is place 0
    assert min(tokens | features | found["places"].loaded) > BEYOND


def map_offsets(patches: list[tuple[int, int]]) -> set[int]:
    rows = [(image * N + patch) * HW + position for image, patch in patches for position in range(HW)]
    assert min(rows) > BEYOND
    return {row * D + d for row in rows for d in CHANNELS}


def gradient_offsets(patches: list[tuple[int, int]]) -> tuple[set[int], set[int]]:
    """Of the tokens' and of the features' gradient."""
    tokens = {(image * (1 + n) + 1 + patch) * D + d for image, patch in patches if patch < n for d in CHANNELS}
    features = {(image * m + patch - n) * D + d for image, patch in patches if patch >= n for d in CHANNELS}
    return tokens, features


@pytest.mark.parametrize("positions", [False, True])
def test_patch_tokens_reduce(positions: bool) -> None:
    stretch, steps = 2**27, 2
    given = TOKENS | {
        "dtokens": HALVES, "dfeatures": HALVES, "inverse": (torch.int32, 13), "partial_sums": FLOATS,
        "partial_positions": FLOATS if positions else None, "images": 2**30, "steps": steps, "PLACES": 16,
    }  # fmt: skip
    found = touched(backward._reduce_kernel, (stretch, 0, 0), given, programs=(2**29, 3, 1))
    images = range(stretch * steps, (stretch + 1) * steps)
    patches = [(image, 13 if positions else place) for image in images for place in range(N)]
    assert found["maps"].loaded == map_offsets(patches)
    assert (found["dtokens"].loaded, found["dfeatures"].loaded) == gradient_offsets(patches)
    assert found["partial_sums"].stored == {(2 * 3 * stretch + i) * D + d for i in range(2) for d in CHANNELS}
    if positions:
        assert found["inverse"].loaded == {image * N + place for image in images for place in range(N)}
        assert found["partial_positions"].stored == {(stretch * N + j) * D + d for j in range(N) for d in CHANNELS}


def test_patch_tokens_input() -> None:
    given = TOKENS | {
        "dtokens": HALVES, "dfeatures": HALVES, "sums": FLOATS, "dmaps": HALVES, "rows": 2**40, "share": 0.0,
        "ROWS": 16,
    }  # fmt: skip
    program = 2**28
    found = touched(backward._input_kernel, (program, 0, 0), given, programs=(2**29, 1, 1))
    patches = [divmod(row, N) for row in range(program * 16, (program + 1) * 16)]
    assert found["maps"].loaded == found["dmaps"].stored == map_offsets(patches)
    assert (found["dtokens"].loaded, found["dfeatures"].loaded) == gradient_offsets(patches)


FAR = 2**30 + 7  # fits into 32 bits, three times as much does not
STRIDES = {"stride_image": 2 * D, "stride_patch": FAR}
HEAD: dict[str, Any] = {
    "score_gradient": FLOATS, "scale": 0.1, "N": N, "M": m, "D": D, "PLACES": 16, "QUESTIONS": 16, "FEATURES": 64,
    "DOT": tl.float32, "PARTS": 0,
}  # fmt: skip
QUESTIONS = 16


def assert_summaries(found: dict[str, Any], images: range) -> None:
    assert found["u"].loaded == {image * D + d for image in images for d in CHANNELS}
    assert min(found["u"].loaded) > BEYOND


def assert_features(found: dict[str, Any], images: range) -> None:
    assert found["h"].loaded == {image * 2 * D + k * FAR + d for image in images for k in range(m) for d in CHANNELS}
    assert min(found["h"].loaded) > BEYOND


def test_location_head() -> None:
    image = 2**30
    given = HEAD | STRIDES | {
        "u": FLOATS, "positions": FLOATS, "places": (torch.int64, 3), "h": HALVES, "losses": FLOATS,
        "rights": (torch.int32, 0), "stride_places": N,
    }  # fmt: skip
    found = touched(location_head._forward_kernel, (image, 0, 0), given, programs=(2**30 + 1, 1, 1))
    assert found["places"].loaded == {image * N + j for j in range(m)}
    assert found["positions"].loaded == {3 * D + d for d in CHANNELS}
    assert_summaries(found, range(image, image + 1))
    assert_features(found, range(image, image + 1))
    assert found["losses"].stored == found["rights"].stored == {image}
    assert found["score_gradient"].stored == {image * N * QUESTIONS + i for i in range(N * QUESTIONS)}


STRETCH, STEPS = 2**29, 2
IMAGES = range(STRETCH * STEPS, (STRETCH + 1) * STEPS)
BACKWARD = HEAD | {"dloss": FLOATS, "images": 2**31 - 1, "steps": STEPS}
SCORE_GRADIENT = {image * N * QUESTIONS + i for image in IMAGES for i in range(N * QUESTIONS)}


def test_location_head_features() -> None:
    given = BACKWARD | {"u": FLOATS, "positions": FLOATS, "dh": HALVES}
    found = touched(head_backward._features_kernel, (STRETCH, 0, 0), given, programs=(2**30, 1, 1))
    assert_summaries(found, IMAGES)
    assert found["score_gradient"].loaded == SCORE_GRADIENT
    assert found["dh"].stored == {(image * m + k) * D + d for image in IMAGES for k in range(m) for d in CHANNELS}


def test_location_head_queries() -> None:
    given = BACKWARD | STRIDES | {"h": HALVES, "du": FLOATS, "partial": FLOATS}
    found = touched(head_backward._queries_kernel, (STRETCH, 0, 0), given, programs=(2**30, 1, 1))
    assert_features(found, IMAGES)
    assert found["score_gradient"].loaded == SCORE_GRADIENT
    assert found["du"].stored == {image * D + d for image in IMAGES for d in CHANNELS}
    assert found["partial"].stored == {(STRETCH * N + place) * D + d for place in range(N) for d in CHANNELS}


def test_the_record_sees_an_offset_of_32_bits() -> None:
    """A kernel that multiplies in 32 bits is what these tests are there to find."""
    with np.errstate(over="ignore"):
        found = touched(_narrow_kernel, (2**20, 0, 0), {"out": FLOATS, "SIZE": 4096}, programs=(2**21, 1, 1))
    assert found["out"].stored != {2**32 + i for i in range(16)}


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _narrow_kernel(out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, 16)
    tl.store(out + tl.program_id(0) * SIZE + lane, lane.to(tl.float32))
