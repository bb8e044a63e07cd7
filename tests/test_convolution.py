"""Convolutions as matrix products are convolutions: forward and gradients against F.conv2d in fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastselfie.models.convolution import Conv1x1, Conv3x3, SmallMapConvolution, channels_last, dense_2x2
from tests.small_networks import assert_near

ROUNDING = 1e-14  # fp64, sums of at most 36 * C products


def assert_same_function(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor
) -> None:
    """Value and gradients with regard to input and weight, for a random direction."""
    results = []
    for function in (ours, theirs):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight)]
        y = function(*leaves)
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        results.append([y, *torch.autograd.grad(y, leaves, direction)])
    for name, a, b in zip(("value", "input's gradient", "weight's gradient"), *results, strict=True):
        assert_near(a, b, ROUNDING, name)


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense_product(x: Tensor, weight: Tensor) -> Tensor:
    B, C = x.shape[:2]
    rows = x.permute(0, 2, 3, 1).reshape(B, 4 * C)
    return (rows @ dense_2x2(weight).T).view(B, 2, 2, -1).permute(0, 3, 1, 2)


def convolution(stride: int = 1, padding: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weight: F.conv2d(x, weight, stride=stride, padding=padding)


def applied(layer: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
        return y

    return function


@pytest.mark.parametrize(("C", "O"), [(1, 1), (3, 5), (16, 16)])
def test_dense_2x2_is_the_padded_convolution(random: Callable[..., Tensor], C: int, O: int) -> None:
    assert_same_function(dense_product, convolution(padding=1), random(7, C, 2, 2), random(O, C, 3, 3))


def test_dense_2x2_entry_by_entry() -> None:
    """One channel, weights 0 to 8: what each position (0,0), (0,1), (1,0), (1,1) reads, written out by hand."""
    dense = dense_2x2(torch.arange(9.0).view(1, 1, 3, 3))
    assert dense.tolist() == [[4, 5, 7, 8], [3, 4, 6, 7], [1, 2, 4, 5], [0, 1, 3, 4]]


@pytest.mark.parametrize(
    ("side", "stride"), [((2, 2), 1), ((2, 2), 2), ((4, 4), 1), ((4, 4), 2), ((7, 7), 2), ((2, 3), 1), ((1, 1), 1)]
)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_conv3x3(
    random: Callable[..., Tensor], side: tuple[int, int], stride: int, memory_format: torch.memory_format
) -> None:
    x = random(3, 6, *side).contiguous(memory_format=memory_format)
    assert_same_function(applied(Conv3x3(6, 10, stride)), convolution(stride, 1), x, random(10, 6, 3, 3))


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (8, 2), (7, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_conv1x1(random: Callable[..., Tensor], side: int, stride: int, memory_format: torch.memory_format) -> None:
    x = random(3, 6, side, side).contiguous(memory_format=memory_format)
    assert_same_function(applied(Conv1x1(6, 10, stride)), convolution(stride), x, random(10, 6, 1, 1))


@pytest.mark.parametrize("grad", [True, False])
def test_a_strided_1x1_is_one_product(grad: bool) -> None:
    """Of 3 maps a stride of 2 picks 4 x 4 positions each: 48 rows, whether a gradient is wanted or not. Left to itself,
    PyTorch's linear() makes 12 products of 4 rows of them in an evaluation under autocast."""
    products = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
                products.append(tuple(args[0].shape))
            return operator(*args, **(kwargs or {}))

    x = torch.zeros(3, 6, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16), Products():
        Conv1x1(6, 10, stride=2)(x)
    assert products == [(48, 6)]


def test_2x2_maps_under_autocast(random: Callable[..., Tensor]) -> None:
    """bf16 products of fp32 weights: as near to the truth as F.conv2d is in bf16, twice over; fp32 gradients."""
    layer, x = Conv3x3(32, 32), random(64, 32, 2, 2)
    truth = F.conv2d(x, layer.weight.double(), padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.float())
        theirs = F.conv2d(x.float(), layer.weight, padding=1)
    assert y.dtype == torch.bfloat16
    assert (y - truth).abs().max() <= 2 * (theirs - truth).abs().max()
    (gradient,) = torch.autograd.grad(y.float().sum(), layer.weight)
    expected = torch.autograd.grad(F.conv2d(x, layer.weight.double(), padding=1).sum(), layer.weight)[0]
    assert gradient.dtype == torch.float32
    assert_near(gradient, expected, 2e-2)


def test_channels_last_changes_strides_alone() -> None:
    layers = torch.nn.Sequential(Conv3x3(4, 4), Conv1x1(4, 4))
    before = [parameter.detach().clone() for parameter in layers.parameters()]
    channels_last(layers)
    assert [parameter.stride() for parameter in layers.parameters()] == [(36, 1, 12, 4), (4, 1, 1, 1)]
    for parameter, value in zip(layers.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, value, rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "stride"), [((4, 8), 2), ((5, 7), 2), ((6, 3), 1), ((1, 2), 2)])
def test_small_maps_of_any_shape(random: Callable[..., Tensor], shape: tuple[int, int], stride: int) -> None:
    x, weight = random(3, 5, *shape), random(6, 5, 3, 3)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = SmallMapConvolution.apply(x, weight, stride, torch.float64)
        return y

    assert_same_function(ours, convolution(stride, padding=1), x, weight)


def test_small_maps_with_one_of_both_frozen(random: Callable[..., Tensor]) -> None:
    tensors = random(3, 5, 4, 4), random(6, 5, 3, 3)
    for trained in (0, 1):
        found: list[Tensor] = []
        for function in (SmallMapConvolution.apply, lambda x, weight, *_: F.conv2d(x, weight, stride=2, padding=1)):
            given = [tensor.clone().requires_grad_(index == trained) for index, tensor in enumerate(tensors)]
            found += torch.autograd.grad(function(*given, 2, torch.float64).square().sum(), given[trained])
        ours, theirs = found
        assert_near(ours, theirs, ROUNDING)


@pytest.mark.parametrize("side", [2, 4])
def test_an_empty_batch(side: int) -> None:
    assert Conv3x3(3, 4)(torch.zeros(0, 3, side, side)).shape == (0, 4, side, side)
