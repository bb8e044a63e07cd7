"""The plain network with a Python loop over an image's patches, the way that code which was written for one patch grows.

Each of the N positions in the order of patches goes through the trunk in a call of its own, with all images of the
batch. It is not the same mathematics: batch norm takes its statistics over one position's B patches instead of over all
B * N, and updates its running ones N times a step.
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
