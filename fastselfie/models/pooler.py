"""From the visible patches to their summary u. Attention pooling A (paper, section 2.2): three BERT blocks over u0 and
the visible patches, whose first output is u. Beside it, what A is compared with: mean and maximum.

A pooler takes the tokens that `fastselfie.kernels.patch_tokens` makes, its ``u0`` in front, and gives u.

Shapes: B images, T = 1 + n tokens, D features, K heads, I intermediate features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import POOLER_DEPTH, FinetuneConfig, ModelConfig, PretrainConfig

_LAYER_NORM_EPS = 1e-12  # BERT's (Devlin et al. 2019)


class AttentionBlock(nn.Module):
    """One BERT block, layer norm after each residual: self-attention, then two linear layers around an erf GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.features
        self.heads = config.heads
        self.qkv = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, eps=_LAYER_NORM_EPS)
        self.expand = nn.Linear(D, config.intermediate)
        self.contract = nn.Linear(config.intermediate, D)
        self.output_norm = nn.LayerNorm(D, eps=_LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, queries: int | None = None) -> Tensor:
        """(B, T, D) to (B, T, D), or to the first ``queries`` tokens of that alone: nothing else is computed."""
        T, D = x_BTD.shape[1:]
        if queries is None or queries == T:
            q, k, v = (self._split(t) for t in self.qkv(x_BTD).chunk(3, dim=2))
        else:
            first_BQD = x_BTD[:, :queries]
            q = self._split(F.linear(first_BQD, self.qkv.weight[:D], self.qkv.bias[:D]))
            kv_BT2D = F.linear(x_BTD, self.qkv.weight[D:], self.qkv.bias[D:])
            k, v = (self._split(t) for t in kv_BT2D.chunk(2, dim=2))
            x_BTD = first_BQD
        dropout = self.dropout.p if self.training else 0.0
        mixed_BKTd = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed_BTD = mixed_BKTd.transpose(1, 2).flatten(2)
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.out(mixed_BTD)))
        y_BTD = self.contract(F.gelu(self.expand(x_BTD)))
        return self.output_norm(x_BTD + self.dropout(y_BTD))

    def _split(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, K, T, D / K)."""
        return x_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Pooler(nn.Module):
    """What poolers have in common. Called with u0 and the features of the visible patches, positions added,
    (B, 1 + n, D), they give u (B, D).

    Attributes:
        u0: (D,), the token in front.
    """

    u0: Tensor

    def with_u0(self, h_BnD: Tensor) -> Tensor:
        """(B, n, D) to (B, 1 + n, D): u0 in front."""
        return torch.cat([self.u0.to(h_BnD.dtype).expand(h_BnD.shape[0], 1, -1), h_BnD], dim=1)


class AttentionPooler(Pooler):
    """A: a learned u0 and ``depth`` blocks; only u is used, so the last block computes one query.

    Without blocks u is u0: a control that sees no image, yet may learn what all have in common.
    """

    def __init__(self, config: ModelConfig, depth: int = POOLER_DEPTH) -> None:
        super().__init__()
        self.u0 = nn.Parameter(torch.empty(config.features))
        self.blocks = nn.ModuleList(AttentionBlock(config) for _ in range(depth))
        nn.init.trunc_normal_(self.u0, std=0.02, a=-0.04, b=0.04)
        self.apply(_initialise)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """See `Pooler`."""
        for number, block in enumerate(self.blocks, 1):
            x_BTD = block(x_BTD, queries=1 if number == len(self.blocks) else None)
        return x_BTD[:, 0]


class PlainPooler(Pooler):
    """Mean or maximum of the visible patches' tokens, feature by feature. Has no parameters, and its u0 is not looked
    at: one way leads through the network whatever the pooler."""

    def __init__(self, config: ModelConfig, kind: Literal["mean", "max"]) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("u0", torch.zeros(config.features), persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """See `Pooler`. A gradient goes to equal maxima in equal parts."""
        x_BnD = x_BTD[:, 1:]
        return x_BnD.mean(dim=1) if self.kind == "mean" else x_BnD.amax(dim=1)


def make_pooler(config: PretrainConfig | FinetuneConfig) -> Pooler | None:
    """The pooler that ``config`` asks for, None for the control without one."""
    if config.pooler == "none":
        return None
    if config.pooler == "attention":
        return AttentionPooler(config, config.pooler_depth)
    return PlainPooler(config, config.pooler)


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal of deviation 0.02 cut at two deviations, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(module.bias)
