"""Settings of a probe, in the manner of `fastselfie.config`: without torch, and with the command line's names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastselfie.config import KNN_NEIGHBOURS, KNN_TEMPERATURE, label_share, require


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Classifiers on the features of a pretrained network that stays as it is. What it is and how it
    sees pixels is the run's affair: none of that can be set here."""

    recipe: str
    """The recipe whose images are looked at."""
    pretrained: Path | None = None
    """The pretraining run whose network is looked at."""
    checkpoint: int | None = None
    """Look at the run's checkpoint after so many steps instead of at its end."""
    data: str | None = None
    """Labelled images, as for finetuning: with a test split. None downloads CIFAR-10."""
    out: Path | None = None
    """Folder of the result, below runs/ when not given."""
    labels: str = "100%"
    """Share of the training labels, such as 8%: stratified by class, smaller shares inside larger ones."""
    label_seed: int = 0
    """Decides which labels a share consists of, and which the linear classifier holds back."""
    fresh: bool = True
    """Look at an untrained network of the same shape and seed too: what it has, pretraining did not bring."""
    linear: bool = True
    """Logistic regression with an L2 penalty, chosen on a tenth of the training labels that is held back."""
    knn: bool = True
    """Weighted nearest neighbours."""
    neighbours: int = KNN_NEIGHBOURS
    """Neighbours that vote, k."""
    temperature: float = KNN_TEMPERATURE
    """A neighbour's vote weighs exp(cosine similarity / temperature)."""
    batch_size: int = 250
    """Images that the network holds at once."""
    loader_threads: int | None = None
    """Threads that read and decode files. None: the cores that this process may use."""
    prefetch: int = 2
    """Batches of files that are decoded ahead."""
    decoder: Literal["auto", "dali", "turbo"] = "auto"
    """Who decodes JPEG and PNG images, as in pretraining."""
    hardware_share: float | None = None
    """Share of the JPEG images that a GPU's hardware decoder takes. None: 0.65."""
    index: Path | None = None
    """Folder in which listings of the data are kept. None: .index beside the result."""
    max_bad_share: float = 0.01
    """Share of the images that may turn out unusable; they are named in quarantine.csv and left out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a CUDA device when there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: bf16 autocast over fp32 weights. `auto`: bf16 where the device multiplies it natively."""
    kernels: Literal["auto", "on", "off"] = "auto"
    """A Triton kernel that cuts the images, or plain PyTorch. `auto`: on for CUDA."""

    def __post_init__(self) -> None:
        require(self.checkpoint is None or self.checkpoint >= 1, f"--checkpoint {self.checkpoint}: must be at least 1")
        label_share(self.labels)
        require(0 <= self.label_seed < 2**63, f"--label-seed {self.label_seed}: must be at least 0 and below 2**63")
        require(self.linear or self.knn, "--no-linear: goes against --no-knn, which leaves nothing to do; drop one")
        require(self.neighbours >= 1, f"--neighbours {self.neighbours}: must be at least 1")
        require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"--temperature {self.temperature}: must be a finite number above 0",
        )
        for name, default in (("neighbours", KNN_NEIGHBOURS), ("temperature", KNN_TEMPERATURE)):
            value = getattr(self, name)
            require(
                self.knn or value == default,
                f"--{name} {value}: has no effect, --no-knn has no neighbours; leave one of them out",
            )
        require(
            self.label_seed == 0 or self.linear or label_share(self.labels) < 1,
            f"--label-seed {self.label_seed}: has no effect, every label is a neighbour's; leave it out or take fewer"
            " --labels",
        )
        require(self.batch_size >= 1, f"--batch-size {self.batch_size}: must be at least 1")
