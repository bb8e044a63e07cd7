"""`fastselfie::convolution` alone: its output against PyTorch's convolution in fp64 and loops, its sums against those
of the output as written.

Shapes: M maps, C input and O output channels, h x w positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernel_checks import DEVICE, assert_as_exact
from tests.trunk_cases import DTYPES, LAYOUTS, affine, assert_sums, before_relu, cast, laid_out, maps, weights

pytest.importorskip("triton")
from fastselfie.kernels.fused.convolution import convolution


@dataclass(frozen=True, kw_only=True)
class Case:
    M: int = 3
    C: int = 48
    O: int = 80
    h: int = 5
    w: int = 7
    side: int = 1
    stride: int = 1
    affine: bool = True
    residual: bool = True
    dtype: torch.dtype = torch.float32
    layout: str = ""

    def given(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        out = [-(-size // self.stride) for size in (self.h, self.w)]
        x = maps(self.M, self.C, self.h, self.w, self.dtype)
        residual = maps(self.M, self.O, out[0], out[1], self.dtype, seed=1)
        if self.layout:
            x, residual = laid_out(x, self.layout), laid_out(residual, self.layout)
        weight = weights(self.O, self.C, self.side, self.dtype)
        return x, affine(self.C) if self.affine else None, weight, residual if self.residual else None


def formula(x: Tensor, affine_2C: Tensor | None, weight: Tensor, residual: Tensor | None, stride: int) -> Tensor:
    """In the dtypes of the arguments, products and sums in fp32 at least."""
    if affine_2C is not None:
        x = cast(before_relu(x, affine_2C).relu(), x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    y = F.conv2d(x.to(wide), weight.to(wide), stride=stride, padding=weight.shape[2] // 2)
    return cast(y if residual is None else y + residual.to(wide), x.dtype)


def wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def check(case: Case) -> Tensor:
    x, affine_2C, weight, residual = case.given()
    y, sums = convolution(x, affine_2C, weight, residual, case.stride, True)
    plain = formula(x, affine_2C, weight, residual, case.stride)
    truth = formula(x.double(), wide(affine_2C), weight.double(), wide(residual), case.stride)
    assert_as_exact(y, plain, truth, "y")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_sums(sums, [y.double(), y.double() ** 2], [y, y.double() ** 2])
    again, none = convolution(x, affine_2C, weight, residual, case.stride, False)
    assert torch.equal(again, y)
    assert (none.dtype, none.shape) == (torch.float64, (2, 0))
    return y


SHAPES = [
    Case(),  # fewer rows than a tile has
    Case(M=5, C=64, O=144),  # more rows and columns than a tile
    Case(M=2, h=8, w=8, C=16, O=16),  # exactly a tile of rows
    Case(M=1, h=1, w=1, C=80, O=48),
    Case(M=130, h=1, w=1, C=16, O=256),
    Case(M=11, stride=2),
    Case(M=2, h=8, w=8, stride=2, O=144),
    Case(M=5, side=3, affine=False, O=48),
    Case(M=11, side=3, affine=False, stride=2),
    Case(M=11, h=7, w=5, side=3, affine=False, stride=2, C=16, O=144),
    Case(M=2, h=8, w=8, side=3, affine=False, stride=2, C=16, O=16),
    Case(M=2, h=4, w=4, side=3, affine=False, C=80, O=16),
    Case(M=7, h=1, w=1, side=3, affine=False, C=16, O=16),
    Case(M=7, h=2, w=2, side=3, affine=False, stride=2, C=16, O=16),
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("side", "stride", "normalised"), [(1, 1, True), (1, 1, False), (1, 2, True), (3, 2, False)])
def test_dtypes_and_options(dtype: torch.dtype, residual: bool, side: int, stride: int, normalised: bool) -> None:
    check(Case(M=4, dtype=dtype, residual=residual, side=side, stride=stride, affine=normalised))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("side", "stride"), [(1, 1), (1, 2), (3, 1)])
def test_maps_of_any_strides(layout: str, side: int, stride: int) -> None:
    case = Case(side=side, stride=stride, affine=side == 1, C=16, O=32)
    y = check(replace(case, layout=layout))
    assert torch.equal(y, check(case))


def test_other_arguments_of_any_strides() -> None:
    x, affine_2C, weight, _ = Case().given()
    assert affine_2C is not None
    expected = convolution(x, affine_2C, weight, None, 1, True)
    spread = weight.transpose(0, 1).contiguous().transpose(0, 1), affine_2C.t().contiguous().t()
    assert not any(tensor.is_contiguous() for tensor in spread)
    for one, other in zip(convolution(x, spread[1], spread[0], None, 1, True), expected, strict=True):
        assert torch.equal(one, other)
    x, _, weight, _ = Case(side=3).given()
    last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(convolution(x, None, last, None, 2, False)[0], convolution(x, None, weight, None, 2, False)[0])


@pytest.mark.parametrize(("side", "stride"), [(1, 2), (3, 1), (3, 2)])
def test_by_loops(side: int, stride: int) -> None:
    case = Case(M=2, C=16, O=16, side=side, stride=stride, affine=side == 1)
    x, affine_2C, weight, residual = (None if t is None else t.double().cpu().numpy() for t in case.given())
    assert x is not None
    assert weight is not None
    assert residual is not None
    expected = residual.copy()
    for m, o, i, j in np.ndindex(*expected.shape):
        for k, l in np.ndindex(side, side):
            y_here, x_here = i * stride + k - side // 2, j * stride + l - side // 2
            if 0 <= y_here < case.h and 0 <= x_here < case.w:
                for c in range(case.C):
                    value = x[m, c, y_here, x_here]
                    if affine_2C is not None:
                        value = max(affine_2C[0, c] * value + affine_2C[1, c], 0.0)
                    expected[m, o, i, j] += weight[o, c, k, l] * value
    actual = convolution(*case.given(), stride, False)[0]
    np.testing.assert_allclose(actual.double().cpu().numpy(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_rows_that_are_not_there_are_not_in_the_sums(residual: bool) -> None:
    """Rows behind the last are relu(offset) @ weight to the kernel, which is large here; there are 119 of them."""
    case = Case(M=1, h=3, w=3, C=16, O=16, residual=residual)
    x, affine_2C, weight, around = case.given()
    assert affine_2C is not None
    affine_2C[1] = 50
    y, sums = convolution(x, affine_2C, weight.abs(), around, 1, True)
    assert_sums(sums, [y.double(), y.double() ** 2], [y, y.double() ** 2])


def test_a_3x3_one_takes_its_input_as_it_is() -> None:
    """Padding would be relu(offset) instead of 0."""
    x, affine_2C, weight, _ = Case(side=3, C=16, O=16).given()
    with pytest.raises(AssertionError, match="3x3"):
        convolution(x, affine_2C, weight, None, 1, True)


def test_no_maps() -> None:
    for side, stride in ((1, 1), (3, 2)):
        x, affine_2C, weight, residual = Case(M=0, side=side, stride=stride, affine=side == 1).given()
        y, sums = convolution(x, affine_2C, weight, residual, stride, True)
        assert (y.shape, y.dtype) == ((0, 80, -(-5 // stride), -(-7 // stride)), x.dtype)
        assert torch.equal(sums, torch.zeros(2, 80, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_nan_reaches_its_rows(normalised: bool) -> None:
    """Also where the slope is 0 or the relu is closed around it."""
    for channel in (1, 2, 5):
        x, affine_2C, weight, _ = Case(M=4, C=16, affine=normalised).given()
        x[1, channel, 2, 4] = torch.nan
        y, sums = convolution(x, affine_2C, weight, None, 1, True)
        assert y.isnan().any(dim=1).nonzero().tolist() == [[1, 2, 4]]
        assert y[1, :, 2, 4].isnan().all()
        assert sums.isnan().all()


def test_a_nan_reaches_its_window() -> None:
    x, _, weight, residual = Case(M=2, C=16, O=16, side=3).given()
    x[1, 3, 0, 4] = torch.nan
    y, _ = convolution(x, None, weight, None, 1, True)
    window = [[1, i, j] for i in (0, 1) for j in (3, 4, 5)]
    assert y.isnan().all(dim=1).nonzero().tolist() == y.isnan().any(dim=1).nonzero().tolist() == window
    strided, _ = convolution(x, None, weight, None, 2, True)
    assert strided.isnan().any(dim=1).nonzero().tolist() == [[1, 0, 2]]
    assert residual is not None
    residual[0, 7, 1, 1] = torch.nan
    y, sums = convolution(torch.zeros_like(x), None, weight, residual, 1, True)
    assert y.isnan().nonzero().tolist() == [[0, 7, 1, 1]]
    assert sums.isnan().nonzero().tolist() == [[0, 7], [1, 7]]
