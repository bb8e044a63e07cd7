"""Labelled subsets (paper, section 3.1): stratified by class, fixed by a seed, smaller ones inside larger ones."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fastselfie.files import replace_bytes
from fastselfie.randomness import Purpose, random_bits


def labelled_subset(labels_S: Tensor, share: float, seed: int) -> Tensor:
    """Indices of ``share`` of the samples, the same share of every class.

    Each class is put into an order that depends on the seed alone, and floor(share * size + 0.5) of it taken from the
    front, at least one: a smaller share is a prefix of a larger one.

    Args:
        labels_S: int64 (S,), on the CPU. share: in (0, 1].

    Returns:
        int64 (n,), ascending.
    """
    taken = _of_each_class(labels_S, torch.arange(len(labels_S)), share, seed, Purpose.LABELS)
    return taken.sort().values


def held_back(labels_S: Tensor, rows: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide ``rows`` into those to train on and ``share`` of every class to judge by (paper, section 3.2).

    Args:
        labels_S: int64 (S,), on the CPU. rows: int64 (n,), indices into it. share: in (0, 1).

    Returns:
        int64 (n - k,) to train on and (k,) to judge by, ascending; of each class at least one in the second, and all
        of a class that has one row alone.
    """
    judged = _of_each_class(labels_S, rows, share, seed, Purpose.HOLD_BACK)
    return rows[~torch.isin(rows, judged)], judged.sort().values


def _of_each_class(labels_S: Tensor, rows: Tensor, share: float, seed: int, purpose: Purpose) -> Tensor:
    """floor(share * size + 0.5) of each class among ``rows``, at least one, from the front of a seeded order."""
    bits = random_bits(seed, purpose, torch.zeros_like(rows), rows, 1)[:, 0]
    ordered = rows[bits.argsort(stable=True)]
    # Sorted once: to look through all labels for each class takes most of a minute of ImageNet's.
    labels_n, place_n = labels_S[ordered].sort(stable=True)
    sizes = labels_n.unique_consecutive(return_counts=True)[1].tolist()
    classes = ordered[place_n].split(sizes)
    return torch.cat([of_class[: max(1, math.floor(share * len(of_class) + 0.5))] for of_class in classes])


def write_subset(path: Path, indices: Tensor) -> None:
    """One index a line, of images in the training split in the order of its files."""
    replace_bytes(path, "".join(f"{index}\n" for index in indices.tolist()).encode())
