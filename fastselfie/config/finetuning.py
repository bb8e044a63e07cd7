"""Settings of finetuning (paper, section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastselfie.config.checks import flag, label_share, require
from fastselfie.config.pretraining import POOLER_DEPTH, require_pooler_depth
from fastselfie.config.run import RunConfig

Encoder = Literal["resnet50", "resnet36-attention"]
RESNET50: Encoder = "resnet50"
RESNET36_ATTENTION: Encoder = "resnet36-attention"
ENCODERS = (RESNET50, RESNET36_ATTENTION)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Finetuning on labels (paper, section 2.3), from a pretrained run or from scratch."""

    pretrained: Path | None = None
    """A pretraining run's folder to start from, or a .safetensors file, a ResNet-50v2 by timm's names."""
    scratch: bool = False
    """Start from fresh weights: the supervised baseline."""
    encoder: Encoder = RESNET50
    """ResNet-50 on the whole image, or the pretrained trunk and pooler with a linear classifier on u."""
    labels: str = "100%"
    """Share of the training labels, such as 8%: stratified by class, smaller shares inside larger ones."""
    label_seed: int = 0
    """Decides which labels a share consists of, apart from --seed."""
    hold_back: float = 0.0
    """Share of those labels that is kept out of training and judged on, as the paper chooses its settings: 0.1. The
    test images are not looked at then. 0: trains on all, and judges by the test images."""
    positions: Literal["both", "query"] | None = None
    """Whether resnet36-attention adds position vectors to its features; as in pretraining when not given."""
    pooler: Literal["attention", "mean", "max"] = "attention"
    """What makes u in resnet36-attention; with --from as in pretraining."""
    pooler_depth: int = POOLER_DEPTH
    """Blocks of resnet36-attention's --pooler attention, 1 to 4; with --from as in pretraining."""
    pooler_weights: Literal["pretrained", "fresh"] = "pretrained"
    """Whether resnet36-attention's pooler and positions start from the run that --from names. `fresh`: the trunk alone
    does, and the pooler may be another."""
    trunk_input: Literal["image", "patches"] = "image"
    """What the trunk is applied to: the whole image, or each patch by itself as in pretraining. ResNet-50's fourth
    stage has the whole image's map in front of it either way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.scratch and self.pretrained is not None),
            "--scratch: goes against --from; start from fresh weights or from a pretraining run",
        )
        require(0 <= self.label_seed < 2**63, f"--label-seed {self.label_seed}: must be at least 0 and below 2**63")
        require(0 <= self.hold_back < 1, f"--hold-back {self.hold_back}: must be at least 0 and below 1")
        require_pooler_depth(self.pooler, self.pooler_depth)
        self._check_pooler()
        label_share(self.labels)

    def _check_pooler(self) -> None:
        """Refuse settings of a pooler that is not there, or that has nothing to do."""
        require(
            self.pooler_depth > 0,
            "--pooler-depth 0: u is then the same for every image, and there is nothing to classify; take at least 1",
        )
        settings = {"pooler": "attention", "pooler_depth": POOLER_DEPTH, "pooler_weights": "pretrained"}
        for name, default in settings.items():
            value = getattr(self, name)
            require(
                self.encoder != RESNET50 or value == default,
                f"{flag(name)} {value}: --encoder resnet50 has no pooler; leave it out or take"
                " --encoder resnet36-attention",
            )
        require(
            self.pooler_weights == "pretrained" or not self.scratch,
            f"--pooler-weights {self.pooler_weights}: with --scratch everything is fresh; leave it out",
        )
