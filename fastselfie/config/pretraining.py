"""Settings of pretraining (paper, section 2.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastselfie.config.checks import require
from fastselfie.config.run import RunConfig

POOLER_DEPTH = 3
KNN_NEIGHBOURS, KNN_TEMPERATURE = 20, 0.07
"""Of the weighted nearest neighbours, as usual for frozen features (Wu et al. 2018 take 200 and 0.07)."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Pretraining (paper, section 2.1)."""

    task: Literal["selfie"] = "selfie"
    """The pretext task."""
    pretrained: Path | None = None
    """A .safetensors file to start from, a ResNet-50v2 by timm's names: the trunk takes its first three stages."""
    keep: float = 0.75
    """Share of the patches that the encoder sees; the paper tries 0.75 and 0.5."""
    pooler: Literal["attention", "mean", "max", "none"] = "attention"
    """What makes u of the visible patches' features: attention blocks, or their mean or maximum, without parameters.
    `none` is the control: u = 0, so that a patch can be placed by its own looks alone."""
    pooler_depth: int = POOLER_DEPTH
    """Attention blocks of --pooler attention, 0 to 4; the paper's is 3. 0 is another control: u is u0 itself, learned
    and the same for every image."""
    positions: Literal["both", "query"] = "both"
    """Position vectors are added to the encoder's features and to u, or to u alone."""
    position_std: float = 1.0
    """Standard deviation of the position vectors before training."""
    masks: Literal["image", "batch"] = "image"
    """In training, each image has a mask of its own, or all images of a step have the same. In evaluations each image
    has its own either way."""
    logit_scale: Literal["rsqrt", "none"] = "rsqrt"
    """Scores are divided by sqrt(D), or not at all (the paper to the letter)."""
    held_out: int = 1_024
    """Test images on which accuracy and context gap are measured, without padding or crop. Of a source without any,
    at most a tenth of the training images is set aside for it. 0: none, and no gap is measured."""
    knn_every: int = 0
    """Steps between looks at the features: the classes of the held-out images by their nearest neighbours among
    training images. Takes labels, which training does not see. 0: none."""
    knn_images: int = 5_000
    """Training images that may be neighbours, at most; the seed decides which."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.knn_every >= 0, f"--knn-every {self.knn_every}: must be at least 1, or 0 for none")
        require(self.knn_images >= 1, f"--knn-images {self.knn_images}: must be at least 1")
        require(
            not self.knn_every or self.held_out > 0,
            f"--knn-every {self.knn_every}: asks for the classes of the held-out images, and --held-out 0 has none;"
            " leave one of them out",
        )
        require(math.isfinite(self.keep) and 0 < self.keep < 1, f"--keep {self.keep}: must be above 0 and below 1")
        visible = visible_patches(self.keep, self.patches)
        require(
            1 <= visible <= self.patches - 2,
            f"--keep {self.keep}: shows {visible} of {self.patches} patches; at least 1 must be seen and 2 masked",
        )
        require_pooler_depth(self.pooler, self.pooler_depth)
        require(
            math.isfinite(self.position_std) and self.position_std > 0,
            f"--position-std {self.position_std}: must be a finite number above 0",
        )
        require(
            self.held_out == 0 or self.held_out >= 2,
            f"--held-out {self.held_out}: must be at least 2, to take u from another image, or 0 to measure nothing",
        )

    @property
    def visible(self) -> int:
        """Patches an image that the encoder sees, n."""
        return visible_patches(self.keep, self.patches)


def require_pooler_depth(pooler: str, depth: int) -> None:
    """Raise `UserError` unless a pooler of that kind can have ``depth`` attention blocks."""
    require(0 <= depth <= 4, f"--pooler-depth {depth}: must be at least 0 and at most 4")
    require(
        pooler == "attention" or depth == POOLER_DEPTH,
        f"--pooler-depth {depth}: --pooler {pooler} has no attention blocks; leave it at {POOLER_DEPTH}",
    )


def without_context(pooler: str, depth: int) -> str:
    """The flag that makes u the same for every image, empty where u is of the image."""
    if pooler == "none":
        return "--pooler none"
    return "" if depth else "--pooler-depth 0"


def visible_patches(keep: float, patches: int) -> int:
    """n = floor(keep * N + 0.5): how many of N patches the encoder sees."""
    return math.floor(keep * patches + 0.5)
