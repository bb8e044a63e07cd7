"""Images of a split without those set aside, against the list written out."""

from __future__ import annotations

import random

import pytest
import torch

from fastselfie.pipelines.refusal import substitutes
from fastselfie.pipelines.rows import AllBut
from fastselfie.randomness import Purpose, random_bits

ASIDE: list[list[int]] = [[], [0], [9], [3, 2, 1, 0], [9, 8], [0, 9, 4], list(range(9)), list(range(10))]


@pytest.mark.parametrize("aside", ASIDE + [random.Random(seed).sample(range(10), seed) for seed in range(10)])
def test_they_are_the_images_that_are_not_aside(aside: list[int]) -> None:
    rows = AllBut(10, torch.tensor(aside, dtype=torch.int64))
    expected = [image for image in range(10) if image not in aside]
    assert (len(rows), rows.tolist()) == (len(expected), expected)
    for entries in (slice(1, 4), slice(None, 2), slice(3, 100), slice(-2, None)):
        assert rows[entries].tolist() == expected[entries]
    entry_B = torch.tensor([entry % len(expected) for entry in (5, 0, 3, 3, 7)] if expected else [], dtype=torch.int64)
    assert rows[entry_B].tolist() == [expected[entry] for entry in entry_B.tolist()]
    assert rows[entry_B].dtype == torch.int64


def test_all_of_very_many_cost_nothing() -> None:
    rows = AllBut(10**15, torch.tensor([7, 10**14]))
    assert len(rows) == 10**15 - 2
    assert rows[torch.tensor([6, 7, 10**14 - 1, 10**15 - 3])].tolist() == [6, 8, 10**14 + 1, 10**15 - 1]


def test_substitutes_are_the_same_of_rows_written_out() -> None:
    rows = AllBut(20, torch.tensor([3, 11]))
    assert list(substitutes(5, 2, 7, rows)) == list(substitutes(5, 2, 7, torch.tensor(rows.tolist())))


def test_substitutes_are_sixteen_draws_without_the_image_itself() -> None:
    draws = random_bits(5, Purpose.SUBSTITUTE, torch.tensor([2]), torch.tensor([7]), 16)[0].tolist()
    expected = [(3, 7, 9)[draw % 3] for draw in draws if draw % 3 != 1]
    assert list(substitutes(5, 2, 7, torch.tensor([3, 7, 9]))) == expected
    assert set(expected) == {3, 9}
