"""The plain network with a Python loop over patches: each position of an image goes through the trunk by itself.

A call has one patch of every image of the batch, and there are N calls. It is not the same mathematics: batch norm
takes its statistics over one position's B patches instead of over all B * N, and updates its running ones N times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.baselines.plain_selfie import PlainSelfie


class PerPatchSelfie(PlainSelfie):
    """`PlainSelfie`, one trunk call a patch position."""

    def features(self, patches: Tensor, count: int) -> Tensor:
        """(B * N, 3, P, P) of N = ``count`` patches an image to (B * N, D)."""
        positions = patches.unflatten(0, (-1, count)).unbind(dim=1)
        one_by_one = [self.head(self.maps(patch)) for patch in positions]
        return torch.stack(one_by_one, dim=1).flatten(0, 1)
