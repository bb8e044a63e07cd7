"""`fastselfie::normalise`, `normalisation_sums` and `normalisation_input` alone, against their formulas in fp64.

Shapes: M maps, C channels, h x w positions.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernel_checks import DEVICE, assert_as_exact
from tests.trunk_cases import DTYPES, LAYOUTS, affine, assert_sums, before_relu, cast, laid_out, maps

pytest.importorskip("triton")
from fastselfie.kernels.fused import normalisation
from fastselfie.kernels.fused.normalisation import (
    normalisation_input,
    normalisation_sums,
    normalise,
)

SHAPES = [(3, 48, 5, 7), (1, 16, 1, 1), (1, 64, 8, 8), (5, 80, 4, 4), (9, 144, 3, 5)]


def relu_gradient(da: Tensor, x: Tensor, affine_2C: Tensor) -> Tensor:
    """dz, as wide as the affine map."""
    return da.to(affine_2C.dtype) * (before_relu(x, affine_2C) > 0)


def input_formula(da: Tensor, x: Tensor, affine_2C: Tensor, pull_2C: Tensor, around: Tensor | None) -> Tensor:
    slope, (constant, rate) = affine_2C[0][:, None, None], pull_2C[:, :, None, None]
    dx = slope * relu_gradient(da, x, affine_2C) - constant - rate * x.to(affine_2C.dtype)
    return cast(dx if around is None else dx + around.to(affine_2C.dtype), x.dtype)


def check(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "") -> None:
    M, C, h, w = shape
    x, da, around = (maps(M, C, h, w, dtype, seed=seed) for seed in range(3))
    if layout:
        x, da, around = (laid_out(tensor, layout) for tensor in (x, da, around))
    affine_2C, pull_2C = affine(C), affine(C, seed=1)
    mean_C = affine(C, seed=2)[0]

    out = normalise(x, affine_2C)
    truth = before_relu(x.double(), affine_2C.double()).relu()
    assert_as_exact(out, cast(before_relu(x, affine_2C).relu(), dtype), truth, "normalise")
    assert out.is_contiguous(memory_format=torch.channels_last)

    sums = normalisation_sums(da, x, affine_2C, mean_C)
    dz, centre = relu_gradient(da.double(), x.double(), affine_2C.double()), mean_C.double()[:, None, None]
    assert_sums(sums, [dz, dz * (x.double() - centre)], [dz, dz * (x.double().abs() + centre.abs())])

    for given in (around, None):
        dx = normalisation_input(da, x, affine_2C, pull_2C, given)
        wide = (tensor if tensor is None else tensor.double() for tensor in (da, x, affine_2C, pull_2C, given))
        assert_as_exact(dx, input_formula(da, x, affine_2C, pull_2C, given), input_formula(*wide), "input")  # type: ignore[arg-type]
        assert dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_of_any_strides(layout: str) -> None:
    check((3, 48, 5, 7), torch.float32, layout)


@pytest.mark.parametrize("channels", [16, 80])
@pytest.mark.parametrize("programs", [1, 2, 3, 6, 256])
def test_sums_in_stretches(programs: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """315 rows, five blocks: in one program, in programs of several of which the last is short, and in one each."""
    monkeypatch.setattr(normalisation, "_PROGRAMS", programs)
    check((9, channels, 5, 7), torch.float32)


def test_rows_that_are_not_there_are_in_no_sum() -> None:
    """To the kernel their x is 0, behind a large offset and far from a large mean."""
    x, da, affine_2C = maps(1, 16, 3, 3) + 100, maps(1, 16, 3, 3, seed=1), affine(16)
    affine_2C[1] = 1e4
    mean = x.mean(dim=(0, 2, 3))
    deviation = x.double() - mean.double()[:, None, None]
    sums = normalisation_sums(da, x, affine_2C, mean)
    assert_sums(sums, [da, da * deviation], [da, da * (deviation.abs() + 100)])


def test_no_maps() -> None:
    x, affine_2C = maps(0, 48, 5, 7), affine(48)
    assert normalise(x, affine_2C).shape == normalisation_input(x, x, affine_2C, affine_2C, x).shape == x.shape
    sums = normalisation_sums(x, x, affine_2C, affine_2C[0])
    assert torch.equal(sums, torch.zeros(2, 48, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("channel", [1, 2, 5])
def test_a_nan_stays_a_nan(channel: int) -> None:
    """Of x, also where the slope is 0; of the gradient, where the relu is open."""
    x, da, affine_2C = maps(3, 16, 5, 7), maps(3, 16, 5, 7, seed=1), affine(16)
    at = [[1, channel, 2, 4]]
    is_open = before_relu(x, affine_2C)[1, channel, 2, 4].item() > 0
    da[1, channel, 2, 4] = torch.nan
    sums = normalisation_sums(da, x, affine_2C, affine_2C[0])
    assert sums.isnan().nonzero().tolist() == [[0, channel], [1, channel]] * is_open
    dx = normalisation_input(da, x, affine_2C, affine_2C, None)
    assert dx.isnan().nonzero().tolist() == at * is_open
    da = maps(3, 16, 5, 7, seed=1)
    around = da.clone()
    around[1, channel, 2, 4] = torch.nan
    assert normalisation_input(da, x, affine_2C, affine_2C, around).isnan().nonzero().tolist() == at
    x[1, channel, 2, 4] = torch.nan
    assert normalise(x, affine_2C).isnan().nonzero().tolist() == at
    assert normalisation_input(da, x, affine_2C, affine_2C, None).isnan().nonzero().tolist() == at
    assert normalisation_sums(da, x, affine_2C, affine_2C[0]).isnan().nonzero().tolist() == [[1, channel]]
