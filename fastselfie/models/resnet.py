"""ResNet-50v2 (He et al. 2016b) and its first three stages, the patch network P (paper, sections 2.1 and 3.2).

Pre-activation bottlenecks, stride on the 3x3, final batch norm and ReLU, then average pooling.
Shapes: B images or patches, P pixels a side, D = 1024 * width features, h x w positions.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import EXPANSION, ModelConfig
from fastselfie.models import compiled, fused
from fastselfie.models.convolution import Conv1x1, Conv3x3
from fastselfie.models.norm import norm_relu, pre_activation
from fastselfie.models.patches import cut, join

DEPTHS = (3, 4, 6, 3)
PATCH_STAGES = 3


class Bottleneck(nn.Module):
    """Pre-activation bottleneck: [norm, ReLU, 1x1], [norm, ReLU, 3x3], [norm, ReLU, 1x1], plus the shortcut.

    Where shapes change, the shortcut is a 1x1 convolution of the pre-activated input (He et al. 2016b).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.norm1 = batch_norm(in_channels)
        self.conv1 = Conv1x1(in_channels, channels)
        self.norm2 = batch_norm(channels)
        self.conv2 = Conv3x3(channels, channels, stride)
        self.norm3 = batch_norm(channels)
        self.conv3 = Conv1x1(channels, out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = Conv1x1(in_channels, out_channels, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, 4 * channels, h / stride, w / stride)."""
        step = None if self.shortcut is None else self.shortcut.stride[0]
        activated, picked, x = pre_activation(self.norm1, x, step)
        residual = x if self.shortcut is None or picked is None else self.shortcut.multiply(picked)
        y = self.conv1(activated)
        y = self.conv2(norm_relu(self.norm2, y))
        return self.conv3(norm_relu(self.norm3, y), residual)

    def products(self) -> list[nn.Conv2d]:
        """Its convolutions."""
        return [conv for conv in (self.conv1, self.conv2, self.conv3, self.shortcut) if conv is not None]


class Stem(nn.Module):
    """The first convolution. Below 32 pixels a side 3x3 stride 1; from 32 on ResNet's 7x7 stride 2 and max-pooling, so
    that an 8-pixel and a 32-pixel patch both enter stage 1 as an 8x8 map."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.pool = patch >= 32
        kernel, stride = (7, 2) if self.pool else (3, 1)
        self.conv = nn.Conv2d(3, channels, kernel, stride=stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, P, P) to (B, channels, P, P), or to (B, channels, P / 4, P / 4) with max-pooling."""
        x = self.conv(x)
        if not self.pool:
            return x
        return compiled.max_pool(x) if torch.compiler.is_compiling() else F.max_pool2d(x, 3, stride=2, padding=1)


class ResNetV2(nn.Module):
    """The first ``stages`` stages of ResNet-50v2, ending in batch norm and ReLU. Three make ResNet-36, four ResNet-50.

    Attributes:
        features: channels put out, 1024 * width after three stages.
    """

    def __init__(self, config: ModelConfig, stages: int) -> None:
        super().__init__()
        widths = config.stage_channels[:stages]
        self.stem = Stem(widths[0], config.patch)
        self.stages = nn.ModuleList()
        channels = widths[0]
        for index, (width, depth) in enumerate(zip(widths, DEPTHS[:stages], strict=True)):
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(channels, width, stride=2 if index > 0 and block == 0 else 1))
                channels = EXPANSION * width
            self.stages.append(nn.Sequential(*blocks))
        self.norm = batch_norm(channels)
        self.features = channels
        self.apply(_initialise)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, P, P) to the last map before the final batch norm, (B, features, h, w), and its `channel_sums` where
        the kernel that wrote it gave them too; no gradient goes through those."""
        return _through(list(self.stages), self.stem(x))

    def forward_map(self, x: Tensor) -> Tensor:
        """(B, 3, P, P) to the last map after batch norm and ReLU, (B, features, h, w)."""
        return norm_relu(self.norm, self.forward_stages(x)[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, P, P) to (B, features): the map averaged over its positions."""
        return self.forward_map(x).mean(dim=(2, 3))

    def forward_patches(self, images: Tensor, grid: int) -> Tensor:
        """(B, 3, H, H) to (B, features): stem and stages 1 to 3 on each patch by itself, as P in pretraining, and what
        comes after them on the patches' maps put together on the grid."""
        maps, _ = _through(list(self.stages[:PATCH_STAGES]), self.stem(cut(images, grid)))
        whole, _ = _through(list(self.stages[PATCH_STAGES:]), join(maps, grid))
        return norm_relu(self.norm, whole).mean(dim=(2, 3))


def _through(stages: list[nn.Module], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """See `ResNetV2.forward_stages`."""
    blocks = cast(list[Bottleneck], [block for stage in stages for block in cast(nn.Sequential, stage)])
    if fused.runs_fused(x, blocks):
        return fused.forward(blocks, x)
    for stage in stages:
        x = stage(x)
    return x, None


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm without the counter of batches: nothing reads it when the momentum is a number, and counting is a
    kernel launch a layer. Load weights through `fastselfie.models.weights.load_weights`.

    What reads it fails until it is given back, ``norm.num_batches_tracked = torch.tensor(0)``: `reset_running_stats`,
    `torch.optim.swa_utils.update_bn`, `convert_sync_batchnorm`. For the last there is
    `fastselfie.models.statistics.synchronised`.
    """
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None
    return norm


def trunk(config: ModelConfig) -> ResNetV2:
    """P: ResNet-36, the first three stages."""
    return ResNetV2(config, stages=PATCH_STAGES)


def _initialise(module: nn.Module) -> None:
    """He initialisation, fan-out, for convolutions; batch norms start at weight 1, bias 0 as torch makes them."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
