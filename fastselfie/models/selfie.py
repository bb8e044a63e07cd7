"""The Selfie network: trunk, pooler, positions and the multi-location head (paper, section 2.1, figure 1).

Shapes: B images, N patches an image, n visible and m = N - n masked, D features, P pixels a side of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import PretrainConfig
from fastselfie.kernels import location_head, location_scores, patch_tokens
from fastselfie.kernels.dispatch import fused
from fastselfie.models.norm import norm_relu
from fastselfie.models.pooler import make_pooler
from fastselfie.models.positions import Positions
from fastselfie.models.resnet import trunk
from fastselfie.models.statistics import statistics


class Selfie(nn.Module):
    """Masked-patch classification.

    All N patches go through the trunk in one call, so batch-norm statistics are over visible and masked ones together.
    With ``pooler="none"`` u is 0: the control that can only judge a patch by its own looks. With an attention pooler
    of depth 0 u is learned, but still of no image: visible patches then count in batch-norm statistics alone.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.visible = config.visible
        self.scale = config.features**-0.5 if config.logit_scale == "rsqrt" else 1.0
        self.positions_in_encoder = config.positions == "both"
        self.trunk = trunk(config)
        self.pooler = make_pooler(config)
        self.positions = Positions(config.grid, config.features, config.position_std)

    def forward(self, patches: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (fp32 scalar) and number of right answers among B * m (int64 scalar). Arguments as in `encode`."""
        u_BD, h_BmD = self.encode(patches, places_BN)
        return self.judge(u_BD, h_BmD, places_BN)

    def encode(self, patches: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Summarise the visible patches and describe the masked ones.

        Args:
            patches: (B * N, 3, P, P), image by image, the n visible patches of each first.
            places_BN: int64 (B, N), where in the grid each patch comes from.

        Returns:
            u (B, D) and the masked patches' features h (B, m, D).
        """
        B, n = places_BN.shape[0], self.visible
        if self.pooler is None:
            h_BmD = self.trunk(patches).unflatten(0, (B, -1))[:, n:]
            return h_BmD.new_zeros(B, h_BmD.shape[2]), h_BmD
        maps, sums_2D = self.trunk.forward_stages(patches)
        if maps.device.type == "cpu" and not fused("patch_tokens", maps.device):
            return self._encode_on_cpu(maps, places_BN)
        norm, positions_ND = self.trunk.norm, self.positions() if self.positions_in_encoder else None
        its = statistics(norm, maps, sums_2D)
        tokens_BTD, h_BmD = patch_tokens(
            maps, its.values_2D, norm.weight, norm.bias, self.pooler.u0, positions_ND, places_BN, n,
            eps=norm.eps, count=its.count, group=its.group,
        )  # fmt: skip
        return self.pooler(tokens_BTD), h_BmD

    def _encode_on_cpu(self, maps: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        """What `patch_tokens` does, from modules: a CPU has one kernel for a batch norm, and it reads bf16 maps once
        where sums in fp64 and maps in fp32 take a dozen passes."""
        assert self.pooler is not None
        activated = norm_relu(self.trunk.norm, maps)
        # Averaged with the channels last, so that the gradient comes back in the maps' layout.
        h_BND = activated.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1).unflatten(0, places_BN.shape)
        h_BnD, h_BmD = h_BND[:, : self.visible], h_BND[:, self.visible :]
        if self.positions_in_encoder:
            h_BnD = h_BnD + F.embedding(places_BN[:, : self.visible], self.positions())
        return self.pooler(self.pooler.with_u0(h_BnD)), h_BmD

    def summarise(self, h_BND: Tensor) -> Tensor:
        """u (B, D) of images of which all N patches are visible, from what the trunk makes of these, row by row in the
        grid. There is none with ``pooler="none"``."""
        assert self.pooler is not None, "this network has no pooler"
        if self.positions_in_encoder:
            h_BND = h_BND + self.positions()
        return self.pooler(self.pooler.with_u0(h_BND))

    def place(self, patches: Tensor, places_BN: Tensor) -> Tensor:
        """Which masked patch the network puts at each masked place: int64 (B, m), indices into the m masked patches.

        Arguments as in `encode`. A patch may be put at several places: each place is a question of its own.
        """
        return self._chosen(*self.encode(patches, places_BN), places_BN)

    def judge(self, u_BD: Tensor, h_BmD: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of right answers for summaries ``u_BD``, which need not be those images' own."""
        return location_head(u_BD, self.positions(), places_BN[:, self.visible :], h_BmD, self.scale)

    def right_answers(self, u_BD: Tensor, h_BmD: Tensor, places_BN: Tensor) -> Tensor:
        """Number of right answers in each image, int64 (B,); arguments as in `judge`."""
        chosen_Bm = self._chosen(u_BD, h_BmD, places_BN)
        return (chosen_Bm == torch.arange(chosen_Bm.shape[1], device=chosen_Bm.device)).sum(dim=1)

    def _chosen(self, u_BD: Tensor, h_BmD: Tensor, places_BN: Tensor) -> Tensor:
        """The best patch at each place, int64 (B, m); the first of equally good ones."""
        return location_scores(u_BD, self.positions(), places_BN[:, self.visible :], h_BmD, self.scale).argmax(dim=2)
