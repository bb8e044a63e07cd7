"""The Selfie network from plain PyTorch modules, as the paper (sections 2.1, 2.2 and 3.2) reads: no part of FastSelfie.

It is what FastSelfie is measured against (eager, fp32, NCHW) and what its network is tested against: `load_from` takes
the weights of a `fastselfie.models.selfie.Selfie`. Positions are added in the encoder and to u; scores are scaled.

Shapes: B images, N patches an image, n visible and m = N - n masked, T = 1 + n tokens, D features, P pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((64, 3), (128, 4), (256, 6))  # bottleneck channels at width 1, blocks
ATTENTION_LAYERS = 3


class Block(nn.Module):
    """Pre-activation bottleneck of ResNet-50v2 (He et al. 2016b), stride on the 3x3."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.bn_a = nn.BatchNorm2d(inputs)
        self.conv_a = nn.Conv2d(inputs, channels, kernel_size=1, bias=False)
        self.bn_b = nn.BatchNorm2d(channels)
        self.conv_b = nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn_c = nn.BatchNorm2d(channels)
        self.conv_c = nn.Conv2d(channels, 4 * channels, kernel_size=1, bias=False)
        self.projection: nn.Conv2d | None = None
        if stride > 1 or inputs != 4 * channels:
            self.projection = nn.Conv2d(inputs, 4 * channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, 4 * channels, h / stride, w / stride)."""
        a = self.relu(self.bn_a(x))
        y: Tensor = self.conv_a(a)
        y = self.conv_b(self.relu(self.bn_b(y)))
        y = self.conv_c(self.relu(self.bn_c(y)))
        if self.projection is not None:
            x = self.projection(a)
        return x + y


class AttentionLayer(nn.Module):
    """BERT's block (Devlin et al. 2019): dropout on attention weights and on both outputs, norm after each residual."""

    def __init__(self, features: int, heads: int, dropout: float) -> None:
        super().__init__()
        hidden = features * 640 // 1024
        self.attention = nn.MultiheadAttention(features, heads, dropout=dropout, batch_first=True)
        self.norm_a = nn.LayerNorm(features, eps=1e-12)
        self.mlp = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))
        self.norm_b = nn.LayerNorm(features, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        y, _ = self.attention(x, x, x, need_weights=False)
        x = self.norm_a(x + self.dropout(y))
        output: Tensor = self.norm_b(x + self.dropout(self.mlp(x)))
        return output


class PlainSelfie(nn.Module):
    """Masked-patch classification.

    Args:
        width: multiplies all channel counts. grid: patches a side. patch: pixels a side of one. visible: n.
    """

    def __init__(
        self, width: float, grid: int, patch: int, visible: int, heads: int = 32, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.visible = visible
        channels = int(64 * width)
        self.stem: nn.Module
        if patch < 32:
            self.stem = nn.Sequential(nn.Conv2d(3, channels, kernel_size=3, padding=1, bias=False))
        else:
            first = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(first, nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        blocks = []
        for stage, (base, depth) in enumerate(STAGES):
            for block in range(depth):
                blocks.append(Block(channels, int(base * width), stride=2 if stage > 0 and block == 0 else 1))
                channels = 4 * int(base * width)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.token = nn.Parameter(0.02 * torch.randn(channels))
        self.attention = nn.ModuleList(AttentionLayer(channels, heads, dropout) for _ in range(ATTENTION_LAYERS))
        self.table: nn.Parameter | None = None
        if grid <= 4:
            self.table = nn.Parameter(torch.randn(grid * grid, channels))
        else:
            self.row = nn.Parameter(0.5**0.5 * torch.randn(grid, channels))
            self.column = nn.Parameter(0.5**0.5 * torch.randn(grid, channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, patches: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of right answers among B * m.

        Args:
            patches: (B * N, 3, P, P), image by image, the n visible patches of each first. A channels-last tensor would
                make torch compute everything channels-last.
            places: int64 (B, N), where in the grid each patch comes from.
        """
        u, h = self.encode(patches, places)
        return self.judge(u, h, places)

    def encode(self, patches: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, D) of the visible patches and features (B, m, D) of the masked ones."""
        B, n = places.shape[0], self.visible
        h = self.features(patches, places.shape[1]).view(B, places.shape[1], -1)
        x = torch.cat([self.token.expand(B, 1, -1), h[:, :n] + self.positions(places[:, :n])], dim=1)
        return self.summarise(x), h[:, n:]

    def features(self, patches: Tensor, count: int) -> Tensor:
        """(B * N, 3, P, P) of N = ``count`` patches an image to (B * N, D)."""
        output: Tensor = self.head(self.maps(patches))
        return output

    def maps(self, patches: Tensor) -> Tensor:
        """(B * N, 3, P, P) to the last maps before the final batch norm."""
        output: Tensor = self.blocks(self.stem(patches))
        return output

    def summarise(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) to u (B, D)."""
        for layer in self.attention:
            x = layer(x)
        return x[:, 0]

    def judge(self, u: Tensor, h: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of right answers for summaries (B, D) and features (B, m, D)."""
        v = u.unsqueeze(1) + self.positions(places[:, self.visible :])
        scores = torch.einsum("bjd,bkd->bjk", v, h) / h.shape[2] ** 0.5
        target = torch.arange(h.shape[1], device=h.device).repeat(h.shape[0])
        scores = scores.flatten(0, 1)
        return F.cross_entropy(scores, target), (scores.argmax(dim=1) == target).sum()

    def positions(self, places: Tensor) -> Tensor:
        """Position vectors of ``places`` (B, k): (B, k, D)."""
        if self.table is not None:
            return self.table[places]
        grid = self.row.shape[0]
        return self.row[places // grid] + self.column[places % grid]


def plain_names(plain: PlainSelfie) -> dict[str, str]:
    """From each name in a FastSelfie network's state to its name here."""
    names = {"trunk.stem.conv.weight": "stem.0.weight", "pooler.u0": "token"}
    index = 0
    for stage, (_, depth) in enumerate(STAGES):
        for block in range(depth):
            theirs, ours = f"trunk.stages.{stage}.{block}", f"blocks.{index}"
            for number, letter in enumerate("abc", start=1):
                names |= _norm(f"{theirs}.norm{number}", f"{ours}.bn_{letter}")
                names[f"{theirs}.conv{number}.weight"] = f"{ours}.conv_{letter}.weight"
            if block == 0:
                names[f"{theirs}.shortcut.weight"] = f"{ours}.projection.weight"
            index += 1
    names |= _norm("trunk.norm", "head.0")
    parts = {
        "qkv.weight": "attention.in_proj_weight", "qkv.bias": "attention.in_proj_bias",
        "out.weight": "attention.out_proj.weight", "out.bias": "attention.out_proj.bias",
        "attention_norm.weight": "norm_a.weight", "attention_norm.bias": "norm_a.bias",
        "expand.weight": "mlp.0.weight", "expand.bias": "mlp.0.bias",
        "contract.weight": "mlp.2.weight", "contract.bias": "mlp.2.bias",
        "output_norm.weight": "norm_b.weight", "output_norm.bias": "norm_b.bias",
    }  # fmt: skip
    for layer in range(ATTENTION_LAYERS):
        names |= {f"pooler.blocks.{layer}.{theirs}": f"attention.{layer}.{ours}" for theirs, ours in parts.items()}
    vectors = ("row", "column") if plain.table is None else ("table",)
    return names | {f"positions.{vector}": vector for vector in vectors}


def load_from(plain: PlainSelfie, state: Mapping[str, Tensor]) -> None:
    """Copy the state of a FastSelfie network into ``plain``: every entry is used once, every tensor here is filled.

    Raises:
        KeyError: a name is missing or unknown on either side. ValueError: a shape differs.
    """
    names = plain_names(plain)
    own = dict(plain.named_parameters()) | dict(plain.named_buffers())
    own = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    if set(names) != set(state) or sorted(names.values()) != sorted(own):
        raise KeyError(f"names do not match: {set(names) ^ set(state)}, {set(names.values()) ^ set(own)}")
    with torch.no_grad():
        for theirs, ours in names.items():
            if own[ours].shape != state[theirs].shape:
                raise ValueError(f"{theirs} is {tuple(state[theirs].shape)}, {ours} is {tuple(own[ours].shape)}")
            own[ours].copy_(state[theirs])


def _norm(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
