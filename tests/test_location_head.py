"""`location_head` against loops in fp64; its gradients against central differences of those loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.kernels import location_head

Array = NDArray[np.float64]
SIZES = [(3, 1, 16), (3, 4, 16), (2, 8, 16), (2, 12, 49), (2, 25, 49)]  # images, masked places, places
D = 6


def brute_force(u: Array, e: Array, places: NDArray[np.int64], h: Array, scale: float) -> tuple[float, int]:
    """The mean cross entropy and the number of right answers, question by question."""
    losses, right = [], 0
    for b in range(len(u)):
        for j, place in enumerate(places[b]):
            scores = [scale * float(np.dot(u[b] + e[place], h[b, k])) for k in range(len(places[b]))]
            top = max(scores)
            losses.append(top + math.log(sum(math.exp(s - top) for s in scores)) - scores[j])
            right += scores.index(top) == j
    return sum(losses) / len(losses), right


def problem(B: int, m: int, N: int, features: int = D) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, e, places and h: fp32 tensors in which a masked patch somewhat resembles its place."""
    rng = np.random.default_rng(100 * m + N)
    u, e = rng.normal(size=(B, features)), rng.normal(size=(N, features))
    places = np.stack([rng.permutation(N)[:m] for _ in range(B)])
    h = rng.normal(size=(B, m, features)) + 0.7 * e[places]
    return torch.tensor(u).float(), torch.tensor(e).float(), torch.tensor(places), torch.tensor(h).float()


def truth(u: Tensor, e: Tensor, places: Tensor, h: Tensor, scale: float) -> tuple[float, int]:
    return brute_force(u.double().numpy(), e.double().numpy(), places.numpy(), h.double().numpy(), scale)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("B", "m", "N"), SIZES)
@pytest.mark.parametrize("scale", [1.0, D**-0.5])
def test_loss_and_right_answers(B: int, m: int, N: int, scale: float) -> None:
    u, e, places, h = problem(B, m, N)
    loss, right = location_head(u, e, places, h, scale)
    expected, expected_right = truth(u, e, places, h, scale)
    assert (loss.dtype, right.dtype) == (torch.float32, torch.int64)
    assert loss.shape == right.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert int(right) == expected_right
    if m > 1:
        assert 0 < expected_right < B * m  # a count of nothing or everything would show little
        assert abs(expected - truth(u, e, places, h, 2 * scale)[0]) > 1e-2  # so would a loss that ignores the scale


@pytest.mark.parametrize(("B", "m", "N"), SIZES)
def test_gradients(B: int, m: int, N: int) -> None:
    u, e, places, h = problem(B, m, N)
    leaves = [tensor.clone().requires_grad_() for tensor in (u, e, h)]
    location_head(leaves[0], leaves[1], places, leaves[2], 0.5)[0].backward()
    rng, step = np.random.default_rng(0), 1e-5
    for position, leaf in enumerate(leaves):
        assert leaf.grad is not None
        gradient = leaf.grad.double().numpy().reshape(-1)
        for index in rng.permutation(leaf.numel())[:30]:
            losses = []
            for sign in (1, -1):
                arrays = [tensor.double().numpy().copy() for tensor in (u, e, h)]
                arrays[position].reshape(-1)[index] += sign * step
                losses.append(brute_force(arrays[0], arrays[1], places.numpy(), arrays[2], 0.5)[0])
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4, abs=2e-6)
        assert (np.abs(gradient).max() > 1e-2) == (m > 1)  # one candidate is no question


def test_only_the_places_asked_about_have_a_gradient() -> None:
    u, e, places, h = problem(2, 4, 16)
    e.requires_grad_()
    location_head(u, e, places, h, 0.5)[0].backward()
    assert e.grad is not None
    asked = set(places.flatten().tolist())
    assert {place for place in range(16) if e.grad[place].abs().max() > 0} == asked
    assert len(asked) < 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_computed_in_fp32(dtype: torch.dtype) -> None:
    u, e, places, h = problem(2, 12, 49, features=64)
    u, h = u.to(dtype).requires_grad_(), h.to(dtype).requires_grad_()
    loss, right = location_head(u, e, places, h, 0.125)
    expected, expected_right = truth(u.detach(), e, places, h.detach(), 0.125)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)  # in bf16 it would be off by about 1e-3
    assert int(right) == expected_right
    loss.backward()
    for leaf in (u, h):
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype


def test_autocast_does_not_lower_the_precision() -> None:
    u, e, places, h = problem(4, 12, 49, features=64)
    expected, _ = truth(u, e, places, h, 0.125)
    gradients = []
    for enabled in (False, True):
        leaf = h.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = location_head(u, e, places, leaf, 0.125)
        assert loss.dtype == torch.float32
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_large_scores_do_not_overflow() -> None:
    u, e, places, h = problem(2, 4, 16)
    loss, right = location_head(u * 1e3, e * 1e3, places, h * 1e3, 1.0)
    expected, expected_right = truth(u * 1e3, e * 1e3, places, h * 1e3, 1.0)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert int(right) == expected_right


@pytest.mark.usefixtures("_two_threads")
def test_position_gradients_repeat_bit_for_bit() -> None:
    """Thousands of questions add to each of few vectors: threads that raced to add would not repeat themselves."""
    u, e, places, h = problem(6000, 12, 16, features=16)  # large, so that threads do meet on a busy machine

    def gradient() -> Tensor:
        leaf = e.clone().requires_grad_()
        location_head(u, leaf, places, h, 0.125)[0].backward()
        assert leaf.grad is not None
        return leaf.grad

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(11))
