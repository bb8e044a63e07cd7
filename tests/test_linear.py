"""The linear classifier on frozen features, against another solver, and what it must not look at."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.errors import UserError
from fastselfie.evaluation import linear
from fastselfie.evaluation.linear import FITS, STRENGTHS, check_labels, linear_probe
from fastselfie.evaluation.subsets import labelled_subset

CPU = torch.device("cpu")


def problem(images: int, seed: int, signal: float = 1.5) -> tuple[Tensor, Tensor]:
    """Features of very different scales, some of which tell the class a little; the last is constant."""
    generator = torch.Generator().manual_seed(seed)
    labels_S = torch.randint(0, 3, (images,), generator=generator)
    x_SD = torch.randn(images, 8, generator=generator)
    x_SD[:, :3] += signal * torch.eye(3)[labels_S]
    x_SD = x_SD * torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0, 30.0, 0.0]) + 4
    return x_SD, labels_S


def fitted(x: NDArray[np.float64], y: NDArray[np.int64], strength: float) -> NDArray[np.float64]:
    """Weights and biases, (D + 1, 3), that minimise C times the cross entropies plus half the weights' squared norm."""
    bias, one_hot = np.ones((len(x), 1)), np.eye(3)[y]
    rows = np.concatenate([x, bias], axis=1)

    def objective(flat: NDArray[np.float64]) -> float:
        w = flat.reshape(-1, 3)
        scores = rows @ w
        losses = scipy.special.logsumexp(scores, axis=1) - (scores * one_hot).sum(axis=1)
        return float(strength * losses.sum() + 0.5 * (w[:-1] ** 2).sum())

    solved = scipy.optimize.minimize(objective, np.zeros(rows.shape[1] * 3), method="BFGS")
    weights: NDArray[np.float64] = solved.x.reshape(-1, 3)
    return weights


def share(x: NDArray[np.float64], y: NDArray[np.int64], w: NDArray[np.float64]) -> float:
    return float(((x @ w[:-1] + w[-1]).argmax(axis=1) == y).mean())


def standardised(x: Tensor, by: Tensor) -> NDArray[np.float64]:
    mean, deviation = by.double().mean(dim=0), by.double().std(dim=0, correction=0)
    return ((x.double() - mean) / torch.where(deviation > 0, deviation, 1.0)).numpy()


@pytest.mark.parametrize("seed", [0, 1])
def test_another_solver_agrees(seed: int) -> None:
    (x, y), (test_x, test_y) = problem(300, seed), problem(500, seed + 10)
    found = linear_probe(x, y, test_x, test_y, 3, CPU)
    scores = []
    for strength in STRENGTHS:
        w = fitted(standardised(x, x), y.numpy(), strength)
        scores.append(share(standardised(test_x, x), test_y.numpy(), w))
    assert found.accuracy == pytest.approx(scores[STRENGTHS.index(found.c)], abs=0.0041)  # two at the border
    assert found.converged
    assert 0.6 < found.accuracy < 0.95


@pytest.mark.parametrize(("seed", "as_good"), [(4, 1), (1, 3)])
def test_the_penalty_is_the_best_on_what_is_held_back(seed: int, as_good: int) -> None:
    """By another solver: the most right answers, though another's cross entropy is smaller, and of several penalties
    with as many that with the smallest."""
    x, y = problem(120, seed)
    held = torch.isin(torch.arange(120), labelled_subset(y, 0.1, 3))
    judged, answers = standardised(x[held], x), y[held].numpy()
    ranks = []
    for strength in STRENGTHS:
        w = fitted(standardised(x[~held], x), y[~held].numpy(), strength)
        scores = judged @ w[:-1] + w[-1]
        losses = scipy.special.logsumexp(scores, axis=1) - scores[np.arange(len(answers)), answers]
        ranks.append((-share(judged, answers, w), float(losses.mean()), strength))
    found = linear_probe(x, y, x, y, 3, CPU)
    assert (-found.validation_accuracy, found.c) == (min(ranks)[0], min(ranks)[2])
    assert [accuracy for accuracy, _, _ in ranks].count(min(ranks)[0]) == as_good


def test_the_penalty_is_chosen_on_training_labels_alone() -> None:
    """And the caller is told of each fit, there and once more."""
    (x, y), (test_x, test_y) = problem(300, 0), problem(60, 5)
    told: list[int] = []
    own, other = (linear_probe(x, y, test_x, labels, 0, CPU, told.append) for labels in (test_y, (test_y + 1) % 3))
    assert told == [1] * 2 * FITS
    assert (own.c, own.validation_accuracy) == (other.c, other.validation_accuracy)
    assert own.accuracy > other.accuracy


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (test_x, test_y) = problem(300, 0), problem(250, 5)
    whole = linear_probe(x, y, test_x, test_y, 0, CPU)
    monkeypatch.setattr(linear, "_ROWS", 70)
    assert linear_probe(x, y, test_x, test_y, 0, CPU) == whole
    mean, deviation = linear._scale(x)
    np.testing.assert_allclose(mean, x.double().numpy().mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation[:-1], x[:, :-1].double().numpy().std(axis=0), rtol=1e-6)
    assert deviation[-1] == 1


def test_a_strong_penalty_is_chosen_where_features_are_noise_in_many_dimensions() -> None:
    """With as many features as images a weak one learns the noise by heart."""
    generator = torch.Generator().manual_seed(0)
    y, test_y = torch.arange(400) % 2, torch.arange(400) % 2
    x, test_x = (torch.randn(400, 400, generator=generator) + 0.1 * labels[:, None] for labels in (y, test_y))
    found = linear_probe(x, y, test_x, test_y, 0, CPU)
    assert found.c <= 1e-2
    assert found.accuracy > 0.7


def test_shuffled_labels_give_chance() -> None:
    x, _ = problem(300, 0)
    test_x, _ = problem(1000, 1)
    generator = torch.Generator().manual_seed(2)
    y, test_y = (torch.randint(0, 3, (count,), generator=generator) for count in (300, 1000))
    found = linear_probe(x, y, test_x, test_y, 0, CPU)
    low, high = scipy.stats.binom.ppf([1e-6, 1 - 1e-6], 1000, 1 / 3) / 1000
    assert low <= found.accuracy <= high


def test_a_class_with_one_image_is_trained_on() -> None:
    """Ten images of two classes, one of a third that lies far away: held back, it could not be learnt."""
    x = torch.cat([torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[50.0, 50.0]])])
    x[:10, 0] += 20
    y = torch.tensor([0] * 10 + [1] * 10 + [2])
    found = linear_probe(x, y, x, y, 0, CPU)
    assert found.validation_accuracy == 1
    assert found.accuracy >= 20 / 21


def test_nothing_to_hold_back() -> None:
    check_labels(torch.tensor([0, 1, 1]), "1%")
    with pytest.raises(UserError, match="--labels 1%: leaves one image of each class"):
        check_labels(torch.arange(10), "1%")


def test_what_is_constant_but_for_rounding_is_no_feature() -> None:
    """A thousandth of noise is one: 5 tells the class by that alone. 0.1 plus fp32's rounding is none, though the test
    images are not rounded."""
    generator = torch.Generator().manual_seed(0)
    y, test_y = torch.arange(200) % 2, torch.arange(100) % 2

    def features(labels: Tensor, rounded: float) -> Tensor:
        noise = torch.randn(len(labels), 2, generator=generator)
        told = 5 + 0.005 * (labels + 0.1 * noise[:, 0])
        return torch.stack([told, 0.1 + rounded * 1e-8 * noise[:, 1].sign()], dim=1)

    found = linear_probe(features(y, 1), y, features(test_y, 1000), test_y, 0, CPU)
    assert found.accuracy == 1
