"""The kernels of `channel_sums` and `patch_tokens`, forward and backward, against fp64, and fp64 against others' code.

Shapes: B images, N patches of which n are visible, D channels, h x w positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastselfie.kernels import channel_sums, patch_tokens, reference, using
from tests.kernel_checks import DEVICE, assert_kernel, generator, orders, results
from tests.small_networks import assert_near

pytest.importorskip("triton")

EPS = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A batch, on `DEVICE`. ``constant``: normalise with constants instead of the batch's statistics."""

    B: int = 3
    N: int = 16
    n: int = 12
    D: int = 48
    side: int = 2
    positions: bool = True
    constant: bool = False
    dtype: torch.dtype = torch.float32
    parameters: torch.dtype = torch.float32  # of u0 and positions

    def leaves(self) -> list[Tensor]:
        """Maps whose channels differ in mean and spread, weight, bias, u0 and with positions those."""
        random = generator(self.D + self.N)
        D = self.D
        shift, spread = torch.randn(D, 1, 1, generator=random), 0.5 + torch.rand(D, 1, 1, generator=random)
        maps = torch.randn(self.B * self.N, D, self.side, self.side, generator=random) * spread + shift
        weight, bias = torch.randn(D, generator=random), 0.5 * torch.randn(D, generator=random)
        u0, positions = torch.randn(D, generator=random), torch.randn(self.N, D, generator=random)
        given = [u0, positions] if self.positions else [u0]
        maps = maps.to(self.dtype).to(DEVICE, memory_format=torch.channels_last)
        return [maps, weight.to(DEVICE), bias.to(DEVICE), *(tensor.to(DEVICE, self.parameters) for tensor in given)]

    def upstream(self) -> list[Tensor]:
        random = generator(1)
        tokens = torch.randn(self.B, 1 + self.n, self.D, generator=random)
        features = torch.randn(self.B, self.N - self.n, self.D, generator=random)
        wide = torch.promote_types(self.dtype, self.parameters) if self.positions else self.dtype
        return [tokens.to(DEVICE, wide), features.to(DEVICE, self.dtype)]

    @property
    def names(self) -> str:
        return "tokens features maps weight bias u0" + " positions" * self.positions

    def __call__(self, maps: Tensor, weight: Tensor, bias: Tensor, u0: Tensor, *positions: Tensor) -> Sequence[Tensor]:
        """Tokens and features. The reference itself takes fp64 parameters as well."""
        run = reference.patch_tokens if maps.dtype == torch.float64 else patch_tokens
        count = 0 if self.constant else maps.numel() // self.D
        statistics = self.constants() if self.constant else normalised_by(reference.channel_sums(maps.double()), maps)
        statistics = statistics.to(weight.dtype)
        given = (statistics, weight, bias, u0, positions[0] if positions else None, self.places())
        return run(maps, *given, self.n, eps=EPS, count=count)

    def places(self) -> Tensor:
        return orders(self.B, self.N).to(DEVICE)

    def constants(self) -> Tensor:
        random = generator(2)
        return torch.stack([torch.randn(self.D, generator=random), 0.3 + torch.rand(self.D, generator=random)]).to(
            DEVICE
        )


def normalised_by(sums_2D: Tensor, maps: Tensor) -> Tensor:
    """The batch's mean and biased variance, fp64 (2, D), from its sums."""
    mean_2D = sums_2D / (maps.numel() // maps.shape[1])
    return torch.stack([mean_2D[0], mean_2D[1] - mean_2D[0] ** 2])


def batch_norm_truth(case: Case, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Tokens and features by PyTorch's own batch norm in training mode, indexing image by image."""
    maps, weight, bias, u0, *positions = leaves
    norm = nn.BatchNorm2d(case.D, eps=EPS, dtype=torch.float64, device=DEVICE)
    pooled = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, maps).relu().mean(dim=(2, 3))
    tokens, features = [], []
    for b, order in enumerate(case.places().tolist()):
        own = pooled[b * case.N : (b + 1) * case.N]
        seen = [own[j] + positions[0][order[j]] if positions else own[j] for j in range(case.n)]
        tokens.append(torch.stack([u0, *seen]))
        features.append(own[case.n :])
    return torch.stack(tokens), torch.stack(features)


@pytest.mark.parametrize("positions", [False, True])
def test_the_truth_is_batch_norm_relu_and_pooling(positions: bool) -> None:
    case = Case(B=2, N=4, n=3, D=5, positions=positions)
    leaves = [leaf.double().requires_grad_() for leaf in case.leaves()]
    upstream = [gradient.double() for gradient in case.upstream()]
    ours, theirs = case(*leaves), batch_norm_truth(case, leaves)
    for actual, expected in zip(
        [*ours, *torch.autograd.grad(ours, leaves, upstream)],
        [*theirs, *torch.autograd.grad(theirs, leaves, upstream)],
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_the_truths_gradients_are_differences() -> None:
    case = Case(B=2, N=4, n=3, D=2)
    assert torch.autograd.gradcheck(case, [leaf.double().requires_grad_() for leaf in case.leaves()])


def test_a_tiny_case_by_loops() -> None:
    case = Case(B=2, N=4, n=3, D=16)
    maps, weight, bias, u0, positions = (leaf.double().cpu().numpy() for leaf in case.leaves())
    tokens, features = np.zeros((2, 4, 16)), np.zeros((2, 1, 16))
    for d in range(16):
        values = [float(value) for value in maps[:, d].reshape(-1)]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        for b in range(2):
            tokens[b, 0, d] = u0[d]
            for j in range(4):
                pixels = [(float(x) - mean) / (variance + EPS) ** 0.5 for x in maps[b * 4 + j, d].reshape(-1)]
                pooled = sum(max(weight[d] * x + bias[d], 0.0) for x in pixels) / len(pixels)
                if j < 3:
                    tokens[b, 1 + j, d] = pooled + positions[int(case.places()[b, j]), d]
                else:
                    features[b, j - 3, d] = pooled
    with using("on"):
        actual = case(*case.leaves())
    np.testing.assert_allclose(actual[0].cpu().numpy(), tokens, rtol=0, atol=3e-6)
    np.testing.assert_allclose(actual[1].cpu().numpy(), features, rtol=0, atol=3e-6)


CASES = [
    Case(),
    Case(positions=False),
    Case(constant=True),
    Case(constant=True, positions=False),
    Case(side=1, D=200),
    Case(side=3, D=144),
    Case(N=4, n=3, B=5),
    Case(N=4, n=1, B=5),
    Case(N=49, n=37, B=2),
    Case(N=81, n=50, B=2, side=1),  # more places than a program of the first pass takes
    Case(N=81, n=50, B=2, side=1, positions=False),
    Case(B=1),
    Case(B=66, N=4, n=2, D=16),  # more images than it has stretches
    Case(B=130, N=4, n=2, D=16, side=1),
    Case(D=7, N=9, n=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case) -> None:
    assert_kernel(case, case.leaves(), case.upstream(), case.names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [False, True])
def test_dtypes(dtype: torch.dtype, parameters: torch.dtype, positions: bool) -> None:
    case = Case(dtype=dtype, parameters=parameters, positions=positions)
    found = assert_kernel(case, case.leaves(), case.upstream(), case.names)
    wide = torch.promote_types(dtype, parameters) if positions else dtype
    assert [tensor.dtype for tensor in found[:4]] == [wide, dtype, dtype, torch.float32]
    assert {tensor.dtype for tensor in found[5:]} == {parameters}


@pytest.mark.parametrize("layout", ["contiguous", "every second map", "every second channel", "window"])
def test_maps_of_any_strides(layout: str) -> None:
    case = Case(side=2)
    maps, *others = case.leaves()
    if layout == "contiguous":
        maps = maps.contiguous()
    elif layout == "every second map":
        maps = maps.repeat_interleave(2, dim=0)[::2]
    elif layout == "every second channel":
        maps = maps.repeat_interleave(2, dim=1)[:, ::2]
    else:
        maps = nn.functional.pad(maps, (1, 2, 3, 1), value=1e3)[:, :, 3:5, 1:3]
    assert not maps.is_contiguous(memory_format=torch.channels_last)
    found = assert_kernel(case, [maps, *others], case.upstream(), case.names)
    assert found[2].is_contiguous(memory_format=torch.channels_last)


def test_parameters_of_any_strides() -> None:
    case = Case()
    maps, weight, bias, u0, positions = case.leaves()
    strided = [tensor.repeat_interleave(2)[::2] for tensor in (weight, bias, u0)]
    leaves = [maps, *strided, positions.t().contiguous().t()]
    assert not any(leaf.is_contiguous() for leaf in leaves)
    assert_kernel(case, leaves, case.upstream(), case.names)


@pytest.mark.parametrize("layout", ["one number", "transposed"])
def test_upstream_gradients_of_any_strides(layout: str) -> None:
    case = Case()
    upstream = case.upstream()
    if layout == "one number":  # as .sum() leaves it
        upstream = [gradient[:1, :1, :1].expand(gradient.shape) for gradient in upstream]
    else:
        upstream = [gradient.transpose(0, 2).contiguous().transpose(0, 2) for gradient in upstream]
    assert not any(gradient.is_contiguous() for gradient in upstream)
    assert_kernel(case, case.leaves(), upstream, case.names)


def test_with_the_sums_of_the_kernel() -> None:
    """Both kernels in a row, as a network runs them; the statistics' gradient is in the maps'."""
    case = Case()

    def function(maps: Tensor, weight: Tensor, bias: Tensor, u0: Tensor, positions: Tensor) -> Sequence[Tensor]:
        statistics_2D = normalised_by(channel_sums(maps), maps).float()
        given = (statistics_2D, weight, bias, u0, positions, case.places())
        return patch_tokens(maps, *given, case.n, eps=EPS, count=maps.numel() // case.D)

    exact = results(
        case, [leaf.double() for leaf in case.leaves()], [gradient.double() for gradient in case.upstream()]
    )
    with using("on"):
        kernel = results(function, case.leaves(), case.upstream())
    for what, actual, expected in zip(case.names.split(), kernel, exact, strict=True):
        assert_near(actual, expected, 2e-6, what)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(used: int) -> None:
    case = Case()
    names = case.names.split()
    names = [names[used], *(["maps", "weight", "bias"] if used else names[2:])]
    leaves = case.leaves()

    def function(*some: Tensor) -> Sequence[Tensor]:
        rest = [leaf.to(some[1].dtype) for leaf in leaves[len(some) :]]
        return [case(*some, *rest)[used]]

    assert_kernel(function, leaves[: len(names) - 1], [case.upstream()[used]], " ".join(names))


def test_an_empty_batch() -> None:
    case = Case(B=0, constant=True)
    found = assert_kernel(case, case.leaves(), case.upstream(), case.names)
    assert [tuple(tensor.shape) for tensor in found[:3]] == [(0, 13, 48), (0, 4, 48), (0, 48, 2, 2)]
    assert all(not tensor.any() for tensor in found[3:])
    with using("on"):
        sums_2D = channel_sums(case.leaves()[0])
    assert (sums_2D.dtype, sums_2D.tolist()) == (torch.float64, [[0.0] * 48] * 2)


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_constants_have_no_gradient(kernels: Literal["on", "off"]) -> None:
    case = Case(constant=True)
    maps, weight, bias, u0, positions = case.leaves()
    statistics = case.constants().requires_grad_()
    with using(kernels):
        given = (maps, statistics, weight.requires_grad_(), bias, u0, positions, case.places())
        tokens, _ = patch_tokens(*given, case.n, eps=EPS, count=0)
    found = torch.autograd.grad(tokens.sum(), [weight, statistics], allow_unused=True)
    assert found[0] is not None
    assert found[1] is None


def test_a_nan_stays_a_nan() -> None:
    """A diverged trunk must not look finite behind the ReLU."""
    case = Case(constant=True)
    maps, *others = case.leaves()
    maps[5, 3] = torch.nan  # patch 5 of image 0, visible
    maps[-1, 4] = torch.nan  # the last image's last patch, masked
    with using("on"):
        tokens, features = case(maps, *others)
    assert tokens.isnan().nonzero().tolist() == [[0, 6, 3]]
    assert features.isnan().nonzero().tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 7, 1, 1), (5, 64, 2, 2), (33, 48, 3, 3), (700, 65, 2, 2)])
def test_channel_sums(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """(700, 65, 2, 2) is more blocks of rows than there are programs along them."""
    maps = (torch.randn(shape, generator=generator()) + 0.5).to(DEVICE, dtype)
    with using("on"):
        actual = channel_sums(maps)
    values = maps.double().cpu().numpy().transpose(1, 0, 2, 3).reshape(shape[1], -1)
    assert (actual.shape, actual.dtype) == ((2, shape[1]), torch.float64)
    error = np.abs(actual.cpu().numpy() - np.stack([values.sum(axis=1), (values**2).sum(axis=1)]))
    assert (error <= 1e-6 * np.stack([np.abs(values).sum(axis=1), (values**2).sum(axis=1)])).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_variance_beside_a_large_mean(channels_last: bool) -> None:
    maps = torch.randn(700, 16, 2, 2, generator=generator()) + 10
    maps = maps.to(DEVICE, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    with using("on"):
        variance = normalised_by(channel_sums(maps), maps)[1].cpu().numpy()
    expected = maps.double().cpu().numpy().var(axis=(0, 2, 3))
    np.testing.assert_allclose(variance, expected, rtol=1e-4)
