"""Weighted nearest neighbours against a brute-force loop in fp64, ties included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastselfie.training import neighbours
from fastselfie.training.neighbours import nearest_classes


def brute_force(
    asked: NDArray[np.float64], known: NDArray[np.float64], labels: list[int], k: int, t: float
) -> list[int]:
    """One image after the other, and of equally near ones the first."""
    chosen = []
    for row in asked:
        cosines = [float(row @ other / np.linalg.norm(row) / np.linalg.norm(other)) for other in known]
        nearest = sorted(range(len(known)), key=lambda index: (-cosines[index], index))[:k]
        votes: dict[int, float] = {}
        for index in nearest:
            votes[labels[index]] = votes.get(labels[index], 0.0) + math.exp(cosines[index] / t)
        chosen.append(min(votes, key=lambda label: (-votes[label], label)))
    return chosen


def features(rows: int, seed: int) -> Tensor:
    """With a common part, as a ReLU's features have it: cosines are close to each other."""
    return 1 + torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 10.0), (90, 0.5), (400, 0.07)])
@pytest.mark.parametrize("chunk", [1 << 24, 200, 1])
def test_brute_force(k: int, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    known, asked = features(90, 0), features(40, 1)
    labels = torch.randint(0, 7, (90,), generator=torch.Generator().manual_seed(2))
    chosen = nearest_classes(asked, known, labels, k=k, temperature=temperature)
    expected = brute_force(asked.double().numpy(), known.double().numpy(), labels.tolist(), k, temperature)
    assert chosen.tolist() == expected
    assert len(set(expected)) > 1


def test_few_images_of_many_classes_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of k neighbours has a vote for each of C classes: 800 numbers an asked image, beside 50 similarities."""
    monkeypatch.setattr(neighbours, "_CHUNK", 2_000)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            return result

    with Sizes():
        nearest_classes(features(150, 1), features(50, 0), torch.arange(50) % 40, k=20)
    assert 1_600 <= max(sizes) <= 2_000


def test_similarities_are_gone_through_once() -> None:
    """By the search for the nearest: whether any tie is seen by one neighbour more."""
    made, asked, known = list[Any](), features(9, 1), features(50, 0)

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            made.extend(func.overloadpacket for tensor in tensors if tensor.shape == (9, 50))
            return result

    with Made():
        nearest_classes(asked, known, torch.arange(50) % 4, k=20)
    assert made == [torch.ops.aten.mm]


def test_a_close_one_outvotes_many_that_are_not() -> None:
    """By hand: cosines 1, 0.8 and 0.8; at 0.07 the votes are 1 to 2 exp(-0.2 / 0.07) = 0.115, at 1 to 1.64."""
    known = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    asked, labels = torch.tensor([[3.0, 0.0]]), torch.tensor([2, 5, 5])
    assert nearest_classes(asked, known, labels, k=3, temperature=0.07).tolist() == [2]
    assert nearest_classes(asked, known, labels, k=3, temperature=1.0).tolist() == [5]


@pytest.mark.parametrize("size", [8, 1000])
def test_of_equally_near_ones_the_first_vote(size: int) -> None:
    known = torch.zeros(size, 4)
    known[:, 0] = 1  # all alike
    labels = torch.full((size,), 3)
    labels[:3] = torch.tensor([1, 0, 1])
    asked = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
    assert nearest_classes(asked, known, labels, k=3).tolist() == [1, 1]
    assert nearest_classes(asked, known, labels, k=1).tolist() == [1, 1]
    assert nearest_classes(asked, known, labels, k=2).tolist() == [0, 0]  # and of equally strong classes the first
    assert nearest_classes(asked, known, labels, k=8).tolist() == [3, 3]
    known[-1] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # nearest to the second alone
    asked = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert nearest_classes(asked, known, labels, k=1).tolist() == [1, 3]


def test_a_small_temperature_does_not_overflow() -> None:
    known, asked = features(30, 3), features(9, 4)
    labels = torch.arange(30) % 4
    nearest = brute_force(asked.double().numpy(), known.double().numpy(), labels.tolist(), 1, 1.0)
    assert nearest_classes(asked, known, labels, k=20, temperature=1e-6).tolist() == nearest


def test_autocast_changes_nothing() -> None:
    """In bf16 these cosines would be equal."""
    known = torch.tensor([[1.0, 0.010], [1.0, 0.011], [1.0, 0.012]])
    asked, labels = torch.tensor([[1.0, 0.0121]]), torch.tensor([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_classes(asked, known, labels, k=1).tolist() == [2]


def test_features_in_bf16_are_compared_in_fp32() -> None:
    known, asked = features(90, 0).bfloat16(), features(40, 1).bfloat16()
    labels = torch.arange(90) % 7
    expected = brute_force(asked.double().numpy(), known.double().numpy(), labels.tolist(), 5, 0.07)
    assert nearest_classes(asked, known, labels, k=5, temperature=0.07).tolist() == expected


def test_nobody_asked() -> None:
    assert nearest_classes(torch.zeros(0, 4), torch.ones(3, 4), torch.arange(3)).tolist() == []
