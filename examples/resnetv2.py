"""ResNet-50v2 (He et al. 2016b) in plain PyTorch, without FastSelfie, for the files that `fastselfie export` writes.

`load(FILE).features(images)` are (B, 2048 * width) of images (B, 3, H, H): pixels in [0, 1] less the mean in the file's
metadata, over its std.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn


class Shortcut(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class Block(nn.Module):
    """Norm and ReLU ahead of each convolution; the stride is on the 3x3."""

    def __init__(self, inputs: int, channels: int, stride: int, first: bool) -> None:
        super().__init__()
        self.downsample = Shortcut(inputs, 4 * channels, stride) if first else None
        self.norm1, self.norm2, self.norm3 = map(nn.BatchNorm2d, (inputs, channels, channels))
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.norm1(x).relu()
        shortcut = x if self.downsample is None else self.downsample.conv(activated)
        y = self.norm2(self.conv1(activated)).relu()
        return shortcut + self.conv3(self.norm3(self.conv2(y)).relu())


class ResNet50V2(nn.Module):
    """With timm's names. ``large_stem``: 7x7 and max-pooling, which patches of 32 pixels and more had; else 3x3."""

    def __init__(self, width: float = 1.0, large_stem: bool = True, classes: int = 0) -> None:
        super().__init__()
        channels, inputs = [int(width * base) for base in (64, 128, 256, 512)], int(64 * width)
        kernel, stride = (7, 2) if large_stem else (3, 1)
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, inputs, kernel, stride, padding=kernel // 2, bias=False)})
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if large_stem else nn.Identity()
        self.stages = nn.ModuleList()
        for index, (c, depth) in enumerate(zip(channels, (3, 4, 6, 3), strict=True)):
            first = Block(inputs, c, stride=1 if index == 0 else 2, first=True)
            rest = [Block(4 * c, c, stride=1, first=False) for _ in range(depth - 1)]
            self.stages.append(nn.ModuleDict({"blocks": nn.Sequential(first, *rest)}))
            inputs = 4 * c
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.ModuleDict({"fc": nn.Conv2d(inputs, classes, 1)} if classes else {})

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) to (B, 2048 * width)."""
        x = self.pool(self.stem["conv"](images))
        for stage in self.stages:
            x = stage.get_submodule("blocks")(x)
        return self.norm(x).relu().mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, classes), or the features where the file has no classifier."""
        features = self.features(images)
        return self.head["fc"](features[:, :, None, None]).flatten(1) if len(self.head) else features


def load(path: str | Path) -> ResNet50V2:
    """The network of ``path``, in evaluation mode; every tensor must fit."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    classes = len(tensors.get("head.fc.bias", ()))
    network = ResNet50V2(float(metadata["width"]), int(metadata["patch"]) >= 32, classes)
    network.load_state_dict(tensors, strict=True)
    return network.eval()
