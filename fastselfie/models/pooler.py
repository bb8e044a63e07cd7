"""From the visible patches to their summary u. Attention pooling A (paper, section 2.2): three BERT blocks over u0 and
the visible patches, whose first output is u. Beside it, what A is compared with: mean and maximum.

A pooler takes the tokens that `fastselfie.kernels.patch_tokens` makes, its ``u0`` in front, and gives u.

Shapes: B images, T = 1 + n tokens, D features, K heads, d = D / K.
"""

from __future__ import annotations

from typing import Literal, cast

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

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q, k, v = (self._split(t) for t in self.qkv(x_BTD).chunk(3, dim=2))
        dropout = self.dropout.p if self.training else 0.0
        mixed_BKTd = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self._after_attention(x_BTD, mixed_BKTd.transpose(1, 2).flatten(2))

    def first(self, x_BTD: Tensor) -> Tensor:
        """The first token of what `forward` gives, (B, T, D) to (B, D), without keys and values of all tokens.

        A head's one query q meets W x + b, a token's key, as (q W) . x and a number that is the same for all tokens,
        which softmax drops; a weighted sum of values W x + b is W times that of the tokens, and b.
        """
        B, D, K = x_BTD.shape[0], x_BTD.shape[2], self.heads
        d = D // K
        query_DD, key_DD, value_DD = self.qkv.weight.chunk(3)
        query_bias_D, value_bias_D = self.qkv.bias[:D], self.qkv.bias[2 * D :]
        first_BD = x_BTD[:, 0]
        q_KBd = F.linear(first_BD, query_DD, query_bias_D).view(B, K, d).transpose(0, 1)
        asked_BKD = torch.bmm(q_KBd, key_DD.view(K, d, D)).transpose(0, 1)
        scores_BKT = torch.bmm(asked_BKD, x_BTD.transpose(1, 2))
        wide = torch.promote_types(scores_BKT.dtype, torch.float32)
        share_BKT = self.dropout((scores_BKT.to(wide) * d**-0.5).softmax(dim=2))
        tokens_BKD = torch.bmm(share_BKT.to(x_BTD.dtype), x_BTD)
        values_KBd = torch.bmm(tokens_BKD.transpose(0, 1), value_DD.view(K, d, D).transpose(1, 2))
        kept_BK1 = share_BKT.sum(dim=2, keepdim=True).to(values_KBd.dtype)  # 1 without dropout
        mixed_BKd = values_KBd.transpose(0, 1) + kept_BK1 * value_bias_D.view(K, d)
        return self._after_attention(first_BD, mixed_BKd.flatten(1))

    def _after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the block, token by token: (..., D) and what attention gave for it, (..., D), to (..., D)."""
        x = self.attention_norm(x + self.dropout(self.out(mixed)))
        y = self.contract(F.gelu(self.expand(x)))
        return self.output_norm(x + self.dropout(y))

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
    """A: a learned u0 and ``depth`` blocks; only u is used, so the last block computes that token alone.

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
        blocks = cast(list[AttentionBlock], list(self.blocks))
        if not blocks:
            return x_BTD[:, 0]
        for block in blocks[:-1]:
            x_BTD = block(x_BTD)
        return blocks[-1].first(x_BTD)


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
