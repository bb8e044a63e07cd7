"""The sampler's stream against epochs laid end to end."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from fastselfie.pipelines.sampler import Sampler
from fastselfie.randomness import epoch_order

Entry = tuple[int, int]


def brute_force_stream(seed: int, size: int, epochs: int) -> list[Entry]:
    """(epoch, sample) of every entry."""
    return [(epoch, sample) for epoch in range(epochs) for sample in epoch_order(seed, epoch, size).tolist()]


def entries(sampler: Sampler, start: int, stop: int) -> list[Entry]:
    epoch_B, sample_B = sampler.samples(start, stop)
    assert epoch_B.dtype == sample_B.dtype == torch.int64
    assert epoch_B.shape == sample_B.shape == (stop - start,)
    return list(zip(epoch_B.tolist(), sample_B.tolist(), strict=True))


def make(size: int, seed: int = 0) -> Sampler:
    return Sampler(seed=seed, size=size, device=torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 2, 7, 37])
@pytest.mark.parametrize("seed", [0, 11])
def test_batches_of_any_sizes_cut_the_same_stream(size: int, seed: int) -> None:
    stream = brute_force_stream(seed, size, epochs=6)
    cuts = random.Random(size)
    for _ in range(20):
        start, stop = sorted(cuts.sample(range(len(stream) + 1), 2))  # most span several epochs
        assert entries(make(size, seed), start, stop) == stream[start:stop]


@pytest.mark.parametrize("batch", [1, 16, 37, 50, 100])
def test_consecutive_batches_leave_nothing_out(batch: int) -> None:
    sampler = make(37)
    seen = [entry for step in range(200 // batch) for entry in entries(sampler, step * batch, (step + 1) * batch)]
    assert seen == brute_force_stream(0, 37, epochs=6)[: len(seen)]


def test_every_image_exactly_once_an_epoch() -> None:
    sampler, size, batch, epochs = make(37), 37, 16, 16  # 16 epochs of 37 are 37 batches of 16: the first common end
    seen = [entry for step in range(37) for entry in entries(sampler, step * batch, (step + 1) * batch)]
    assert Counter(seen) == {(epoch, sample): 1 for epoch in range(epochs) for sample in range(size)}
    assert Counter(sample for _, sample in seen) == dict.fromkeys(range(size), epochs)


def test_a_batch_that_spans_epochs_says_so() -> None:
    epoch_B, _ = make(37).samples(30, 30 + 2 * 37)
    assert epoch_B.tolist() == [0] * 7 + [1] * 37 + [2] * 30


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 24), (1, 6), (2, 12), (2, 4), (3, 8), (4, 3), (24, 1)])
def test_shares_of_ranks_and_micro_batches_make_up_the_global_batch(ranks: int, micro_batch: int) -> None:
    batch, step = 24, 5
    share = batch // ranks
    shares = []
    for rank in range(ranks):  # each process has its own sampler; rank r takes [kB + rB/R, kB + (r+1)B/R)
        sampler, first = make(37, seed=3), step * batch + rank * share
        for start in range(first, first + share, micro_batch):
            shares += entries(sampler, start, start + micro_batch)
    assert shares == entries(make(37, seed=3), step * batch, (step + 1) * batch)


def test_asking_again_or_out_of_order_changes_nothing() -> None:
    sampler = make(37)
    first = entries(sampler, 100, 130)
    for start in (500, 0, 3700):
        entries(sampler, start, start + 90)
    assert entries(sampler, 100, 130) == first == entries(make(37), 100, 130)


def test_a_batch_of_more_images_than_any_memory_holds() -> None:
    epoch_B, sample_B = make(2**40).samples(3 * 2**40 - 2, 3 * 2**40 + 2)
    assert epoch_B.tolist() == [2, 2, 3, 3]
    assert len(set(sample_B.tolist())) == 4


@pytest.mark.gpu
def test_on_cuda_it_is_the_same_stream() -> None:
    on_device = Sampler(seed=3, size=37, device=torch.device("cuda")).samples(20, 200)
    assert all(tensor.is_cuda for tensor in on_device)
    assert [tensor.tolist() for tensor in on_device] == [tensor.tolist() for tensor in make(37, 3).samples(20, 200)]


def test_epochs_and_seeds_have_different_orders() -> None:
    epochs = [make(37, seed).samples(start, start + 37)[1] for seed in (0, 1) for start in (0, 37)]
    assert len({tuple(sample_B.tolist()) for sample_B in epochs}) == 4
