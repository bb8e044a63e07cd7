"""Labelled subsets: the same share of every class, nested, chosen by the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastselfie.evaluation.subsets import held_back, labelled_subset, write_subset
from fastselfie.randomness import Purpose, random_bits


@pytest.fixture(scope="module")
def labels() -> Tensor:
    """CIFAR-10's: 5,000 of each of ten classes, in no order."""
    return torch.from_numpy(np.random.default_rng(0).permutation(np.arange(50_000) % 10))


@pytest.mark.parametrize(("share", "each"), [(0.05, 250), (0.08, 400), (0.2, 1000), (1, 5000), (0.0001, 1), (1e-9, 1)])
def test_the_same_share_of_every_class(labels: Tensor, share: float, each: int) -> None:
    indices = labelled_subset(labels, share, seed=0)
    assert indices.dtype == torch.int64
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert labels[indices].bincount().tolist() == [each] * 10


@pytest.mark.parametrize("seed", [0, 5])
def test_smaller_subsets_lie_inside_larger_ones(labels: Tensor, seed: int) -> None:
    subsets = [set(labelled_subset(labels, share, seed).tolist()) for share in (0.05, 0.08, 0.2, 1.0)]
    assert subsets[0] < subsets[1] < subsets[2] < subsets[3] == set(range(50_000))


def test_the_seed_decides(labels: Tensor) -> None:
    first, again, other = (labelled_subset(labels, 0.08, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    common = len(set(first.tolist()) & set(other.tolist()))
    assert 200 < common < 450  # independent halves of 8% share 0.64% of 50,000: 320, give or take 17


def test_the_choice_has_no_favourite_end(labels: Tensor) -> None:
    middle = labelled_subset(labels, 0.08, seed=0).double().mean()
    assert abs(float(middle) - 25_000) < 1_200  # the mean's standard deviation is 219


def test_labels_are_gone_through_as_often_for_any_number_of_classes() -> None:
    """For every class once, of ImageNet's 1.28 million, that took most of a minute at every start."""
    passes = list[int]()

    class Passes(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(isinstance(arg, Tensor) and arg.ndim and len(arg) == 20_000 for arg in args):
                passes[-1] += 1
            return operator(*args, **(kwargs or {}))

    for classes in (10, 1_000):
        passes.append(0)
        with Passes():
            assert len(labelled_subset(torch.arange(20_000) % classes, 0.5, seed=0)) == 10_000
    assert passes[0] == passes[1]


def test_the_first_in_the_order_of_their_numbers_are_chosen() -> None:
    """A subset is part of what a run is: the same seed means the same images in every version."""
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1])

    def first(purpose: Purpose, images: list[int], count: int) -> list[int]:
        key = torch.tensor(images)
        numbers = random_bits(7, purpose, torch.zeros_like(key), key, 1)[:, 0].tolist()
        return [image for _, image in sorted(zip(numbers, images, strict=True))][:count]

    expected = [*first(Purpose.LABELS, [0, 3, 5, 6], 2), *first(Purpose.LABELS, [1, 2, 4, 7, 8, 9], 3)]
    assert labelled_subset(labels, 0.5, seed=7).tolist() == sorted(expected)
    _, judged = held_back(labels, torch.tensor([0, 1, 2, 3, 4, 5, 7]), 0.5, seed=7)
    expected = [*first(Purpose.HOLD_BACK, [0, 3, 5], 2), *first(Purpose.HOLD_BACK, [1, 2, 4, 7], 2)]
    assert judged.tolist() == sorted(expected)


def test_unbalanced_classes() -> None:
    sizes = {3: 1, 0: 7, 9: 90, 6: 26, 4: 1000}  # labels with gaps between them
    labels = torch.tensor([label for label, size in sizes.items() for _ in range(size)])
    taken = labels[labelled_subset(labels, 0.05, seed=2)]
    assert {label: int((taken == label).sum()) for label in sizes} == {3: 1, 0: 1, 9: 5, 6: 1, 4: 50}  # 4.5, 1.3
    assert len(taken) == 58


def test_a_sample_is_chosen_whatever_other_classes_there_are(labels: Tensor) -> None:
    """The order inside a class is the seed's alone: other samples' labels do not move it."""
    merged = torch.where(labels == 9, 8, labels)
    own, other = labelled_subset(labels, 0.08, seed=0), labelled_subset(merged, 0.08, seed=0)
    for label in range(8):
        assert torch.equal(own[labels[own] == label], other[merged[other] == label])


def test_the_file_has_one_index_a_line(tmp_path: Path, labels: Tensor) -> None:
    indices, path = labelled_subset(labels, 0.001, seed=0), tmp_path / "labels.txt"
    write_subset(path, indices)
    assert [int(line) for line in path.read_text(encoding="ascii").splitlines()] == indices.tolist()
    assert path.read_bytes().endswith(b"\n")
    write_subset(path, indices[:3])  # replaces
    assert len(path.read_text().splitlines()) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.txt"]


def test_a_tenth_of_every_class_is_held_back(labels: Tensor) -> None:
    rows = labelled_subset(labels, 0.05, seed=0)
    train, judged = held_back(labels, rows, 0.1, seed=0)
    assert labels[judged].bincount().tolist() == [25] * 10
    assert labels[train].bincount().tolist() == [225] * 10
    assert sorted(train.tolist() + judged.tolist()) == rows.tolist()


def test_what_is_held_back_is_no_share_of_the_subset_by_its_order(labels: Tensor) -> None:
    """Else the 4.5% subset would be all that is trained on, and nested subsets would judge by the same few images."""
    rows = labelled_subset(labels, 0.05, seed=0)
    judged = set(held_back(labels, rows, 0.1, seed=0)[1].tolist())
    front = set(labelled_subset(labels, 0.005, seed=0).tolist())
    assert len(judged & front) < 60  # of 250 each; a tenth, 25, by chance


def test_of_each_class_one_is_held_back_at_least() -> None:
    labels = torch.tensor([0] * 3 + [1] * 30 + [2])
    train, judged = held_back(labels, torch.arange(34), 0.1, seed=1)
    assert labels[judged].bincount().tolist() == [1, 3, 1]
    assert labels[train].bincount(minlength=3).tolist() == [2, 27, 0]
