"""Logistic regression on the features' device, against fp64 in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.evaluation import logistic
from fastselfie.evaluation.logistic import Logistic, fit


def problem(images: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
    """Classes that overlap, each with images."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(images) % classes
    centres = torch.randn(classes, features, generator=generator)
    return torch.randn(images, features, generator=generator) + centres[y], y


class Truth:
    """The mean objective and its slope, by hand in fp64."""

    def __init__(self, x: Tensor, y: Tensor, strength: float) -> None:
        self.x, self.one_hot = x.double().numpy(), np.eye(int(y.max()) + 1)[y.numpy()]
        self.penalty = 1 / (strength * len(y))

    def __call__(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        classes = self.one_hot.shape[1]
        weight, bias = flat[:-classes].reshape(classes, -1), flat[-classes:]
        scores = self.x @ weight.T + bias
        log_share = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
        excess = (np.exp(log_share) - self.one_hot) / len(self.x)
        slope = np.concatenate([(excess.T @ self.x + self.penalty * weight).ravel(), excess.sum(axis=0)])
        loss = -(log_share * self.one_hot).sum(axis=1).mean() + self.penalty / 2 * (weight**2).sum()
        return float(loss), slope

    def lowest(self) -> float:
        start = np.zeros(self.one_hot.shape[1] * (self.x.shape[1] + 1))
        options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 10_000}
        return float(scipy.optimize.minimize(self, start, jac=True, method="L-BFGS-B", options=options).fun)


def flat(found: Logistic) -> NDArray[np.float64]:
    return torch.cat([found.weight_CD.flatten(), found.bias_C]).double().numpy()


@pytest.mark.parametrize("strength", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize(("images", "features", "classes"), [(1000, 8, 2), (1000, 8, 3), (2000, 32, 500)])
def test_the_minimum_is_found(images: int, features: int, classes: int, strength: float) -> None:
    """Of many classes too: a slope of 1e-4, which will do for ten, is there at ten times this tolerance."""
    x, y = problem(images, features, classes)
    found, truth = fit(x, y, classes, strength), Truth(x, y, strength)
    assert found.converged
    assert truth(flat(found))[0] == pytest.approx(truth.lowest(), rel=1e-4)


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(1000, 8, 3)
    whole = fit(x, y, 3, 0.1)
    monkeypatch.setattr(logistic, "_CHUNK", 8 * 300)
    parts = fit(x, y, 3, 0.1)
    np.testing.assert_allclose(flat(parts), flat(whole), atol=2e-4)
    scores = x.double().numpy() @ flat(parts)[:-3].reshape(3, 8).T + flat(parts)[-3:]
    log_share = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
    right, loss = parts.judged(x, y)
    assert right == (scores.argmax(axis=1) == y.numpy()).mean()
    assert loss == pytest.approx(-log_share[np.arange(1000), y].mean(), rel=1e-6)
    np.testing.assert_array_equal(parts.chosen(x), scores.argmax(axis=1))


def test_neither_features_nor_scores_of_a_part_are_more_than_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_CHUNK", 100)
    x, y = problem(60, 5, 4)
    for classes, sizes in ((4, [20] * 3), (25, [4] * 15), (1000, [1] * 60)):
        parts = list(logistic._chunks(x, y, classes))
        assert [len(features) for features, _ in parts] == sizes
        assert torch.equal(torch.cat([labels for _, labels in parts]), y)


def test_what_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(1000, 8, 3)
    monkeypatch.setattr(logistic, "ITERATIONS", 2)
    assert not fit(x, y, 3, 1.0).converged


def test_it_goes_on_from_another_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the minimum there is nowhere to go, and one step is enough to know."""
    x, y = problem(1000, 8, 3)
    found = fit(x, y, 3, 0.1)
    monkeypatch.setattr(logistic, "ITERATIONS", 2)
    again = fit(x, y, 3, 0.1, found)
    assert again.converged
    np.testing.assert_allclose(flat(again), flat(found), atol=1e-3)
