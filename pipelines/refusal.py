"""Images that cannot be used: who they are, and which image is seen in the place of one.

A substitute is a function of the seed, the epoch, the image, and of what the data are, not of what happened before. So
any number of processes, and a resumed run, replace the same image by the same other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastselfie.pipelines.rows import Rows
from fastselfie.randomness import Purpose, random_bits

CANDIDATES = 16


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An image that cannot be used.

    Attributes:
        name: see `EncodedImages.name`. reason: continues it, as in ``is cut off``.
    """

    name: str
    reason: str


def substitutes(seed: int, epoch: int, sample: int, rows: Rows) -> Iterator[int]:
    """Images to take in the place of image ``sample`` in ``epoch``, of ``rows``; the first good one is."""
    keys = torch.tensor([epoch]), torch.tensor([sample])
    for bits in random_bits(seed, Purpose.SUBSTITUTE, *keys, CANDIDATES)[0].tolist():
        entry = bits % len(rows)
        index = int(rows[entry : entry + 1])
        if index != sample:
            yield index
