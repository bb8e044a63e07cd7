"""Labelled subsets (paper, section 3.1): stratified by class, fixed by a seed, smaller ones inside larger ones."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fastselfie.randomness import Purpose, random_bits
from fastselfie.training.files import replace_bytes


def labelled_subset(labels_S: Tensor, share: float, seed: int) -> Tensor:
    """Indices of ``share`` of the samples, the same share of every class.

    Each class is put into an order that depends on the seed alone, and floor(share * size + 0.5) of it taken from the
    front, at least one: a smaller share is a prefix of a larger one.

    Args:
        labels_S: int64 (S,), on the CPU. share: in (0, 1].

    Returns:
        int64 (n,), ascending.
    """
    sample_S = torch.arange(len(labels_S))
    order_S = random_bits(seed, Purpose.LABELS, torch.zeros_like(sample_S), sample_S, 1)[:, 0].argsort(stable=True)
    taken = []
    for label in labels_S.unique().tolist():
        of_class = order_S[labels_S[order_S] == label]
        taken.append(of_class[: max(1, math.floor(share * len(of_class) + 0.5))])
    return torch.cat(taken).sort().values


def write_subset(path: Path, indices: Tensor) -> None:
    """One index a line, of images in the training split in the order of its files."""
    replace_bytes(path, "".join(f"{index}\n" for index in indices.tolist()).encode())
