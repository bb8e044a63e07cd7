"""The two encoders that are finetuned on labels (paper, sections 2.3 and 4.2).

Shapes: B images of H x H pixels, D features, G patches a side, C classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import RESNET50, FinetuneConfig, ModelConfig
from fastselfie.models.patches import cut
from fastselfie.models.pooler import make_pooler
from fastselfie.models.positions import Positions
from fastselfie.models.resnet import ResNetV2, trunk
from fastselfie.models.weights import load_weights

# Of a ResNet-50, what pretraining does not give: stage 4 but for its first norm, and what follows.
NOT_PRETRAINED = (
    *(f"trunk.stages.3.0.{part}" for part in ("norm2.", "norm3.", "conv", "shortcut.")),
    *("trunk.stages.3.1.", "trunk.stages.3.2.", "trunk.norm.", "classifier."),
)


class ResNet50Classifier(nn.Module):
    """ResNet-50v2 on the whole image, or its first three stages patch by patch, and a linear classifier."""

    def __init__(self, config: ModelConfig, classes: int, by_patch: bool = False) -> None:
        super().__init__()
        self.grid, self.by_patch = config.grid, by_patch
        self.trunk = ResNetV2(config, stages=4)
        self.classifier = _linear_classifier(self.trunk.features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) to scores (B, C)."""
        return self.classifier(self.trunk.forward_patches(images, self.grid) if self.by_patch else self.trunk(images))

    def load_pretrained(self, state: dict[str, Tensor]) -> None:
        """Take stem and stages 1 to 3 from a Selfie network's weights; P's final batch norm becomes stage 4's first.

        The rest of stage 4, the final norm and the classifier stay fresh.
        """
        renamed = {}
        for name, value in state.items():
            if name.startswith("trunk.norm."):
                renamed[name.replace("trunk.norm.", "trunk.stages.3.0.norm1.")] = value
            elif name.startswith("trunk."):
                renamed[name] = value
        load_weights(self, renamed, fresh=NOT_PRETRAINED)


class AttentionClassifier(nn.Module):
    """ResNet-36 on the whole image, its map averaged to the patch grid, or patch by patch; pooling as in pretraining,
    attention in the paper, with all patches visible; a linear classifier on u."""

    def __init__(self, config: FinetuneConfig, classes: int) -> None:
        super().__init__()
        self.grid, self.by_patch = config.grid, config.trunk_input == "patches"
        self.fresh_pooler = config.pooler_weights == "fresh"
        self.positions_in_encoder = config.positions != "query"
        self.trunk = trunk(config)
        pooler = make_pooler(config)
        assert pooler is not None
        self.pooler = pooler
        # With "query" nothing here would use them, and an unused parameter stalls DDP.
        self.positions = Positions(config.grid, config.features) if self.positions_in_encoder else None
        self.classifier = _linear_classifier(config.features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) to scores (B, C)."""
        h_BND = self._features(images)
        if self.positions is not None:
            h_BND = h_BND + self.positions()
        return self.classifier(self.pooler(self.pooler.with_u0(h_BND)))

    def _features(self, images: Tensor) -> Tensor:
        """One vector a patch, row by row: (B, N, D)."""
        if self.by_patch:
            return self.trunk(cut(images, self.grid)).unflatten(0, (len(images), -1))
        return _averaged(self.trunk.forward_map(images), self.grid).flatten(2).transpose(1, 2)

    def load_pretrained(self, state: dict[str, Tensor]) -> None:
        """Take trunk, pooler and positions from a Selfie network's weights, or the trunk alone where the pooler is to
        be fresh. The classifier stays fresh."""
        left = ("pooler.", "positions.") if self.fresh_pooler else ("positions.",) if self.positions is None else ()
        taken = {name: value for name, value in state.items() if not name.startswith(left)}
        load_weights(self, taken, fresh=("classifier.", *left))


def encoder(config: FinetuneConfig, classes: int) -> ResNet50Classifier | AttentionClassifier:
    """The encoder that ``config.encoder`` names, with fresh weights."""
    if config.encoder == RESNET50:
        return ResNet50Classifier(config, classes, by_patch=config.trunk_input == "patches")
    return AttentionClassifier(config, classes)


def _averaged(maps: Tensor, grid: int) -> Tensor:
    """(B, D, h, h) averaged to (B, D, grid, grid). In windows of one size where they come out even: CUDA's gradient of
    adaptive ones adds up in an order that changes run by run, and torch.compile cannot fuse it."""
    side = maps.shape[2]
    return F.avg_pool2d(maps, side // grid) if side % grid == 0 else F.adaptive_avg_pool2d(maps, grid)


def _linear_classifier(features: int, classes: int) -> nn.Linear:
    classifier = nn.Linear(features, classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier
