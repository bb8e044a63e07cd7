"""Random numbers against a twin in Python integers, written from the specification alone; and their statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastselfie.randomness import (
    STREAM,
    Purpose,
    epoch_order,
    integers,
    permutations,
    random_bits,
    scalar_key,
    shuffled,
    uniform,
)

WORD = 1 << 64
GAMMA = 0x9E3779B97F4A7C15
SEEDS = [0, 1, 1234567, 2**63 - 1, 2**63, 2**64 - 1, 2**64 + 5, -1, -(2**63), 2**200 + 3]
EPOCHS = [0, 0, 1, 2, 119, 2**31, 2**40 + 1]
SAMPLES = [0, 1, 0, 49_999, 1_281_166, 2**33 + 7, 2**62]


def twin_mix(z: int) -> int:
    """SplitMix64's finaliser, as published."""
    z %= WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def twin_state(*keys: int) -> int:
    """The keys absorbed one by one, each mixed itself first, into a state that starts at 0."""
    state = 0
    for key in keys:
        state = twin_mix(state ^ twin_mix(key + GAMMA))
    return state


def twin_bits(seed: int, purpose: int, epoch: int, sample: int, draws: int) -> list[int]:
    state = twin_state(seed, purpose, epoch, sample)
    return [twin_mix(state + (draw + 1) * GAMMA) >> 1 for draw in range(draws)]


def keys() -> tuple[Tensor, Tensor]:
    return torch.tensor(EPOCHS), torch.tensor(SAMPLES)


def twin_shuffled(key: int, place: int, size: int) -> int:
    """Twelve rounds on a grid of an even number of columns, until a number below ``size`` comes out."""
    columns = max(4, math.ceil(math.sqrt(size)))
    columns += columns % 2
    rows = max(4, math.ceil(size / columns))
    while True:
        row, column = divmod(place, columns)
        for number in range(12):
            sides, other = ((columns, row), (rows, column))[number % 2]
            drawn = (twin_mix(key + (number * 2**20 + other + 1) * GAMMA) >> 21) * sides // 2**43
            if number % 2 == 0:
                column = (column + drawn) % columns
            else:
                row = (row + drawn) % rows
        place = row * columns + column
        if place < size:
            return place


def chi_square(counts: Tensor) -> float:
    """Of counts whose expectations are all the same."""
    expected = counts.double().mean()
    return float(((counts - expected) ** 2 / expected).sum())


def test_the_twin_is_splitmix64() -> None:
    published = """6457827717110365317 3203168211198807973 9817491932198370423
        4593380528125082431 16408922859458223821"""
    assert [twin_mix(1234567 + (draw + 1) * GAMMA) for draw in range(5)] == [int(word) for word in published.split()]


def test_purposes_keep_their_numbers() -> None:
    names = ["ORDER", "CROP", "FLIP", "MASK", "DROPOUT", "INIT", "LABELS", "SCENE", "HELD_OUT", "SUBSTITUTE"]
    assert [Purpose[name].value for name in [*names, "BATCH_MASK", "HOLD_BACK"]] == list(range(1, 13))
    assert STREAM == 2  # what the twins here compute: who changes them changes it


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_equal_the_twins(seed: int) -> None:
    purpose = Purpose.CROP
    bits = [twin_bits(seed, purpose, epoch, sample, 5) for epoch, sample in zip(EPOCHS, SAMPLES, strict=True)]
    assert random_bits(seed, purpose, *keys(), 5).tolist() == bits
    # 53 of the 63 bits, so that the float holds them all; `uniform` is compared without any tolerance.
    assert uniform(seed, purpose, *keys(), 5).tolist() == [[(b >> 10) / 2**53 for b in row] for row in bits]
    for high in (1, 2, 9, 1000, 1 << 20):
        expected = [[(b >> 20) * high // 2**43 for b in row] for row in bits]
        assert integers(seed, purpose, *keys(), 5, high).tolist() == expected
    for items in (1, 4, 49):
        draws = [twin_bits(seed, purpose, epoch, sample, items) for epoch, sample in zip(EPOCHS, SAMPLES, strict=True)]
        expected = [sorted(range(items), key=row.__getitem__) for row in draws]
        assert permutations(seed, purpose, *keys(), items).tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("epoch", [0, 3, 2**35])
def test_epoch_order_equals_the_twins(seed: int, epoch: int) -> None:
    key = twin_state(seed, Purpose.ORDER, epoch) >> 1
    for size in (1, 16, 50):
        order = [twin_shuffled(key, place, size) for place in range(size)]
        assert epoch_order(seed, epoch, size).tolist() == order
        assert epoch_order(seed, epoch, size, 3).tolist() == order[:3]


@pytest.mark.parametrize("size", [1_000_000, 1_281_167, 2**31 + 11, 2**40])
def test_places_of_large_sets_equal_the_twins(size: int) -> None:
    places = [0, 1, 12345, size // 2, size - 1]
    assert shuffled(77, np.array(places), size).tolist() == [twin_shuffled(77, place, size) for place in places]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("counters", [(), (0,), (7, 3), (2**70, -4, 2**63)])
def test_scalar_key_equals_the_twins(seed: int, counters: tuple[int, ...]) -> None:
    key = scalar_key(seed, Purpose.DROPOUT, *counters)
    assert key == twin_state(seed, Purpose.DROPOUT, *counters) >> 1
    torch.Generator().manual_seed(key)  # in the range that generators take


def test_a_sample_does_not_see_its_batch() -> None:
    epoch_B, sample_B = torch.arange(40) % 3, torch.arange(40) * 11 % 40

    def draw(rows: Tensor) -> Tensor:
        return permutations(5, Purpose.MASK, epoch_B[rows], sample_B[rows], 16)

    whole = draw(torch.arange(40))
    assert torch.equal(draw(torch.arange(39, -1, -1)), whole.flip(0))
    for row in range(40):
        assert torch.equal(draw(torch.tensor([row]))[0], whole[row])
    bits = random_bits(5, Purpose.MASK, epoch_B, sample_B, 16)
    assert torch.equal(bits[:, :3], random_bits(5, Purpose.MASK, epoch_B, sample_B, 3))


def test_no_draws_and_no_samples() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert random_bits(0, Purpose.CROP, none, none, 3).shape == (0, 3)
    assert permutations(0, Purpose.MASK, none, none, 16).shape == (0, 16)
    assert random_bits(0, Purpose.CROP, *keys(), 0).shape == (7, 0)


def test_every_key_matters() -> None:
    epoch_B, sample_B = torch.zeros(1000, dtype=torch.int64), torch.arange(1000)
    streams = [
        random_bits(seed, purpose, epoch_B + epoch, sample_B, 2)
        for seed in (0, 1)
        for purpose in Purpose
        for epoch in (0, 1)
    ]
    numbers = torch.stack(streams).flatten()
    assert len(numbers.unique()) == len(numbers)  # two of 72,000 63-bit numbers agree with probability 3e-10
    assert int(numbers.min()) >= 0


@pytest.mark.parametrize("high", [0, -1, (1 << 20) + 1])
def test_integers_refuse_what_they_cannot_do(high: int) -> None:
    with pytest.raises(ValueError, match="high"):
        integers(0, Purpose.CROP, *keys(), 1, high)


# The bounds below are six standard deviations above the mean of the chi-square distribution; the seeds are fixed.
def test_numbers_are_uniform_alone_and_in_pairs() -> None:
    epoch_B, sample_B = torch.arange(20_000) // 10_000, torch.arange(20_000) % 10_000
    assert chi_square(integers(3, Purpose.CROP, epoch_B, sample_B, 1, 9).flatten().bincount(minlength=9)) < 8 + 6 * 4
    unit = uniform(3, Purpose.CROP, epoch_B, sample_B, 1).flatten()
    assert 0 <= float(unit.min()) <= float(unit.max()) < 1
    assert chi_square((unit * 20).long().bincount(minlength=20)) < 19 + 6 * 6.2
    eighth = integers(3, Purpose.CROP, epoch_B, sample_B, 2, 8)
    first, second = eighth[:, 0], eighth[:, 1]
    neighbours = {"draw": (first, second), "sample": (first[:-1], first[1:]), "epoch": (first[:10_000], first[10_000:])}
    for name, (a, b) in neighbours.items():
        assert chi_square((a * 8 + b).bincount(minlength=64)) < 63 + 6 * 11.3, name


def test_permutations_are_uniform() -> None:
    sample_B = torch.arange(8_000)
    drawn = permutations(3, Purpose.MASK, torch.zeros_like(sample_B), sample_B, 16)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(16).expand(8_000, -1))
    counts = (torch.arange(16) * 16 + drawn).flatten().bincount(minlength=256)  # [output position, place]
    assert chi_square(counts) < 225 + 6 * 21.3


@pytest.mark.parametrize("size", [*range(1, 21), 37, 255, 256, 257, 1000, 50_000])
def test_epoch_orders_are_permutations(size: int) -> None:
    for epoch in range(50 if size <= 20 else 2):
        assert epoch_order(0, epoch, size).sort().values.tolist() == list(range(size))
    if size >= 1000:  # two random orders agree at about one place
        for other in (epoch_order(0, 1, size), epoch_order(1, 0, size), torch.arange(size)):
            assert int((epoch_order(0, 0, size) == other).sum()) < 10


@pytest.mark.parametrize("size", [6, 1000])
def test_a_place_does_not_see_its_batch(size: int) -> None:
    whole, keys_B = epoch_order(4, 9, size).numpy(), np.arange(size, dtype=np.uint64) % np.uint64(3)
    key, backwards = scalar_key(4, Purpose.ORDER, 9), np.arange(size - 1, -1, -1)
    assert np.array_equal(shuffled(key, backwards, size), whole[::-1])
    for place in (0, 3, size - 1):
        assert shuffled(key, np.array([place]), size)[0] == whole[place]
        assert shuffled(keys_B, np.arange(size), size)[place] == shuffled(place % 3, np.array([place]), size)[0]
    assert shuffled(key, np.arange(0), size).shape == (0,)


@pytest.mark.parametrize("size", [0, -1, 2**40 + 1])
def test_sets_that_cannot_be_shuffled(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        shuffled(0, np.arange(1), size)


def epochs_of(size: int, epochs: int) -> list[Tensor]:
    """The samples at the first 7 places, each int64 (epochs,)."""
    keys_B = np.array([scalar_key(3, Purpose.ORDER, epoch) for epoch in range(epochs)], dtype=np.uint64)
    return [torch.from_numpy(shuffled(keys_B, np.full(epochs, place), size)) for place in range(min(size, 7))]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_order_is_as_likely(size: int) -> None:
    places, orders = epochs_of(size, 40_000), math.factorial(size)
    code = sum(place * size**digit for digit, place in enumerate(places))
    assert isinstance(code, Tensor)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == orders
    assert chi_square(counts) < orders - 1 + 6 * math.sqrt(2 * (orders - 1))


@pytest.mark.parametrize("size", [7, 16, 20, 37, 100])
def test_places_and_pairs_of_places_are_uniform(size: int) -> None:
    """Neighbours, which share a row of the grid, and places of different rows."""
    places = epochs_of(size, 40_000)
    for place in places:
        assert chi_square(place.bincount(minlength=size)) < size - 1 + 6 * math.sqrt(2 * (size - 1))
    pairs = size * (size - 1)
    for first, second in ((0, 1), (1, 2), (0, 6), (5, 6)):
        counts = (places[first] * size + places[second]).bincount(minlength=size * size)
        different = counts.reshape(size, size)[~torch.eye(size, dtype=torch.bool)]
        assert chi_square(different) < pairs - 1 + 6 * math.sqrt(2 * (pairs - 1))


@pytest.mark.parametrize("size", [1000, 1_281_167])
def test_a_batch_is_spread_over_a_large_set(size: int) -> None:
    """Where the first entries of many epochs come from, and how far apart neighbours are."""
    keys_B = np.array([scalar_key(3, Purpose.ORDER, epoch) for epoch in range(200)], dtype=np.uint64)
    batch_EB = shuffled(keys_B.repeat(100), np.tile(np.arange(100), 200), size).reshape(200, 100)
    steps = np.diff(batch_EB, axis=1) % size
    for numbers in (batch_EB, steps[:, ::2]):
        assert chi_square(torch.from_numpy(numbers.ravel() * 50 // size).bincount(minlength=50)) < 49 + 6 * 9.9


@pytest.mark.gpu
@pytest.mark.parametrize("seed", SEEDS)
def test_cuda_gives_the_same_bits(seed: int) -> None:
    epoch_B, sample_B = keys()
    on_device = random_bits(seed, Purpose.CROP, epoch_B.cuda(), sample_B.cuda(), 5)
    assert on_device.is_cuda
    assert on_device.tolist() == [
        twin_bits(seed, Purpose.CROP, epoch, sample, 5) for epoch, sample in zip(EPOCHS, SAMPLES, strict=True)
    ]
    for draw in (uniform, permutations):
        assert (
            draw(seed, Purpose.MASK, epoch_B.cuda(), sample_B.cuda(), 49).tolist()
            == draw(seed, Purpose.MASK, epoch_B, sample_B, 49).tolist()
        )
