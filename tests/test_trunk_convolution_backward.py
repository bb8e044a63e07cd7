"""`fastselfie::convolution_input` and `fastselfie::convolution_weight` alone, against autograd of PyTorch's convolution
in fp64; the sums against those of dz as written.

Shapes: M maps, C input and O output channels, h x w positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernel_checks import DEVICE, assert_as_exact
from tests.trunk_cases import DTYPES, LAYOUTS, affine, assert_sums, before_relu, cast, laid_out, maps, weights

pytest.importorskip("triton")
from fastselfie.kernels.fused import tiles
from fastselfie.kernels.fused.convolution_backward import convolution_input, convolution_weight


@dataclass(frozen=True, kw_only=True)
class Case:
    """``stride``: of the branch for the input's gradient, of the convolution for the weight's."""

    M: int = 3
    C: int = 48
    O: int = 80
    h: int = 5
    w: int = 7
    stride: int = 1
    branch: bool = False
    dtype: torch.dtype = torch.float32
    layout: str = ""

    def x(self) -> Tensor:
        return self.laid(maps(self.M, self.C, self.h, self.w, self.dtype))

    def affine(self) -> Tensor:
        return affine(self.C)

    def weight(self) -> Tensor:
        return weights(self.O, self.C, 1, self.dtype)

    def dy(self, stride: int, channels: int) -> Tensor:
        out = [-(-size // stride) for size in (self.h, self.w)]
        return self.laid(maps(self.M, channels, out[0], out[1], self.dtype, seed=channels + stride))

    def laid(self, tensor: Tensor) -> Tensor:
        return laid_out(tensor, self.layout) if self.layout else tensor


def input_formula(dy: Tensor, weight: Tensor, x: Tensor, affine_2C: Tensor, branch: Tensor | None, stride: int) -> Any:
    """dz by autograd, of the dtype of ``x``: of a convolution, and of a choice of positions that the branch is of."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z = before_relu(x, affine_2C).requires_grad_()
    a = z.relu()
    outputs, upstream = [F.conv2d(a, weight.to(wide))], [dy.to(wide)]
    if branch is not None:
        outputs.append(a[:, :, ::stride, ::stride])
        upstream.append(branch.to(wide))
    return cast(torch.autograd.grad(outputs, z, upstream)[0], x.dtype)


def check_input(case: Case) -> Tensor:
    x, affine_2C, weight, dy = case.x(), case.affine(), case.weight(), case.dy(1, case.O)
    branch = case.dy(case.stride, case.C) if case.branch else None
    mean = x.double().mean(dim=(0, 2, 3)).float() if case.M else affine_2C[0]
    dz, sums = convolution_input(dy, weight, x, affine_2C, mean, branch, case.stride)
    plain = input_formula(dy, weight, x, affine_2C, branch, case.stride)
    wide = dy.double(), weight.double(), x.double(), affine_2C.double(), None if branch is None else branch.double()
    assert_as_exact(dz, plain, input_formula(*wide, case.stride), "dz")
    assert dz.is_contiguous(memory_format=torch.channels_last)
    centre = mean.double()[:, None, None]
    deviation, spread = x.double() - centre, x.double().abs() + centre.abs()
    assert_sums(sums, [dz, dz.double() * deviation], [dz, dz.double() * spread])
    return dz


INPUTS = [
    Case(),
    Case(branch=True),
    Case(M=5, O=64, C=144, branch=True),
    Case(M=1, h=1, w=1, C=16, O=16),
    Case(M=2, h=8, w=8, C=16, O=144),
    Case(M=11, stride=2, branch=True),
    Case(M=4, h=7, w=5, stride=2, branch=True, C=144, O=16),
    Case(M=3, h=8, w=8, stride=2, branch=True, C=16, O=16),
]


@pytest.mark.parametrize("case", INPUTS, ids=str)
def test_input_shapes(case: Case) -> None:
    check_input(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stride", "branch"), [(1, False), (1, True), (2, True)])
def test_input_dtypes(dtype: torch.dtype, stride: int, branch: bool) -> None:
    check_input(Case(M=4, dtype=dtype, stride=stride, branch=branch))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_of_any_strides(layout: str) -> None:
    case = Case(C=16, O=32, stride=2, branch=True)
    assert torch.equal(check_input(replace(case, layout=layout)), check_input(case))


def weight_formula(dy: Tensor, x: Tensor, affine_2C: Tensor, stride: int) -> Tensor:
    """By autograd, (O, C), fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    a = cast(before_relu(x, affine_2C).relu(), x.dtype).to(wide)
    weight = torch.zeros(dy.shape[1], x.shape[1], 1, 1, dtype=wide, device=x.device, requires_grad=True)
    return torch.autograd.grad(F.conv2d(a, weight, stride=stride), weight, dy.to(wide))[0].flatten(1)


def check_weight(case: Case) -> Tensor:
    x, affine_2C, dy = case.x(), case.affine(), case.dy(case.stride, case.O)
    found = convolution_weight(dy, x, affine_2C, case.stride)
    plain = weight_formula(dy, x, affine_2C, case.stride)
    truth = weight_formula(dy.double(), x.double(), affine_2C.double(), case.stride)
    assert_as_exact(found, plain, truth, "weight")
    return found


WEIGHTS = [
    Case(),
    Case(M=1, h=1, w=1, C=16, O=16),
    Case(M=2, h=8, w=8, C=16, O=16),
    Case(M=5, C=144, O=80),
    Case(M=5, C=64, O=144),
    Case(M=11, stride=2),
    Case(M=4, h=7, w=5, stride=2, C=16, O=16),
]


@pytest.mark.parametrize("case", WEIGHTS, ids=str)
def test_weight_shapes(case: Case) -> None:
    check_weight(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_weight_dtypes(dtype: torch.dtype, stride: int) -> None:
    check_weight(Case(M=4, dtype=dtype, stride=stride))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_of_any_strides(layout: str) -> None:
    case = Case(C=16, O=32, stride=2)
    assert torch.equal(check_weight(replace(case, layout=layout)), check_weight(case))


@pytest.mark.parametrize("programs", [1, 2, 264])
@pytest.mark.parametrize("stride", [1, 2])
def test_weight_in_stretches(programs: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in one stretch, in some of several steps of which the last is ragged, and in one a block of rows."""
    monkeypatch.setattr(tiles, "_PROGRAMS", programs)
    case = Case(M=13 if stride == 1 else 38, C=16, O=16, stride=stride)
    rows = case.dy(stride, 1).numel()
    tile = tiles.tile_of("weight", case.C, case.dtype)
    steps = tiles.stretch_steps(rows, tile, 1)
    stretches = -(-rows // (tile.depth * steps))
    assert (stretches, steps) == {1: (1, 15), 2: (3, 7), 264: (15, 1)}[programs]
    check_weight(case)


def test_rows_that_are_not_there_are_in_no_sum() -> None:
    """To the kernels their x is 0, behind a large offset and far from a large mean."""
    case = Case(M=1, h=3, w=3, C=16, O=16)
    x, affine_2C, weight, dy = case.x() + 100, case.affine(), case.weight(), case.dy(1, case.O)
    affine_2C[1] = 1e4
    mean = x.mean(dim=(0, 2, 3))
    dz, sums = convolution_input(dy, weight, x, affine_2C, mean, None, 1)
    deviation = x.double() - mean.double()[:, None, None]
    assert_sums(sums, [dz, dz * deviation], [dz, dz * (deviation.abs() + 100)])
    truth = weight_formula(dy.double(), x.double(), affine_2C.double(), 1)
    assert_as_exact(convolution_weight(dy, x, affine_2C, 1), weight_formula(dy, x, affine_2C, 1), truth)


def test_no_maps() -> None:
    for stride in (1, 2):
        case = Case(M=0, stride=stride, branch=True)
        x, affine_2C = case.x(), case.affine()
        branch = case.dy(stride, case.C)
        dz, sums = convolution_input(case.dy(1, 80), case.weight(), x, affine_2C, affine_2C[0], branch, stride)
        assert (dz.shape, sums.shape, sums.any().item()) == (x.shape, (2, 48), False)
        found = convolution_weight(case.dy(stride, 80), x, affine_2C, stride)
        assert torch.equal(found, torch.zeros(80, 48, device=DEVICE))


def test_a_nan_goes_on() -> None:
    """Of the gradient where the relu is open, of x wherever it is."""
    case = Case(C=16, O=32)
    x, affine_2C, weight, dy = case.x(), case.affine(), case.weight(), case.dy(1, case.O)
    open_C = before_relu(x, affine_2C)[1, :, 2, 4] > 0
    assert 0 < open_C.sum() < 16
    dy[1, 7, 2, 4] = torch.nan
    dz, sums = convolution_input(dy, weight, x, affine_2C, affine_2C[0], None, 1)
    assert dz.isnan().nonzero().tolist() == [[1, c, 2, 4] for c in open_C.nonzero().flatten().tolist()]
    assert torch.equal(sums.isnan(), open_C.expand(2, -1))
    found = convolution_weight(dy, x, affine_2C, 1)
    assert found.isnan().any(dim=1).nonzero().tolist() == [[7]]
    assert found[7].isnan().all()
    x[0, 2, 1, 1] = torch.nan  # a channel whose slope is 0
    found = convolution_weight(case.dy(1, case.O), x, affine_2C, 1)
    assert found.isnan().any(dim=0).nonzero().tolist() == [[2]]
    assert found[:, 2].isnan().all()
    dz, sums = convolution_input(case.dy(1, case.O), weight, x, affine_2C, affine_2C[0], None, 1)
    assert sums.isnan().nonzero().tolist() == [[1, 2]]
    branch = case.dy(1, case.C)
    branch[2, 1, 0, 0] = torch.nan  # open everywhere
    dz, _ = convolution_input(case.dy(1, case.O), weight, case.x(), affine_2C, affine_2C[0], branch, 1)
    assert dz.isnan().nonzero().tolist() == [[2, 1, 0, 0]]
