"""What pretraining and finetuning have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastselfie.config.checks import flag, require, require_local
from fastselfie.config.model import ModelConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class RunConfig(ModelConfig):
    """What pretraining and finetuning have in common."""

    recipe: str
    """The recipe that these settings started from."""
    data: str | None = None
    """A folder of JPEG or PNG files (train/ and val/ with class folders, or flat), a list of them (.txt), a folder or
    URL of packed shards or WebDataset tars, a folder of TFRecord or Parquet files, cifar-10-batches-py or its tar.gz, a
    folder of ImageNet 32x32 batches, or synthetic. None downloads CIFAR-10, for recipes of 32x32 pixels."""
    out: Path | None = None
    """The run's folder, below runs/ when not given. A half-done run there is gone on with."""
    steps: int = 120_000
    """Optimiser steps."""
    batch_size: int = 512
    """Images a step, over all processes and micro-batches."""
    micro_batch_size: int | None = None
    """Images that one process holds at once; gradients accumulate over its share. Batch norm sees a micro-batch."""
    lr: float = 0.1
    """Peak learning rate; after a linear warm-up of min(100, steps // 5) steps it falls to 0 along a cosine."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 1e-4
    """On convolution and linear weights only: not on norms, biases, positions and u0."""
    seed: int = 0
    """Decides every random choice: initial weights, order, crops, flips, masks, dropout."""
    crop: Literal["pad", "resized"] = "pad"
    """`pad`: pad and crop back (the paper's for 32x32). `resized`: random resized crop of a file (its for 224x224)."""
    min_area: float = 0.08
    """Smallest share of an image's area that a random resized crop takes."""
    pad: int = 4
    """Pixels of padding a side before the random crop of --crop pad; 0 switches that crop off."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    """Padding with black (the paper's) or by reflection."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Channel means subtracted from pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    """Channel deviations that pixels are then divided by."""
    sync_bn: bool = False
    """Batch-norm statistics over all processes."""
    loader_threads: int | None = None
    """Threads of a process that read and decode files. None: its share of the machine's cores."""
    prefetch: int = 2
    """Batches of files that are decoded ahead."""
    decoder: Literal["auto", "dali", "turbo"] = "auto"
    """Who decodes JPEG and PNG images: NVIDIA DALI, on a GPU where there is one, or libjpeg-turbo on the CPU. `auto`:
    DALI for CUDA, turbo for the CPU where simplejpeg is installed. Their pixels are within one level of 255, but for
    the outermost ones of a view."""
    hardware_share: float | None = None
    """Share of the JPEG images that a GPU's hardware decoder takes. None: 0.65, or 0 with --deterministic."""
    region_decoding: Literal["auto", "on", "off"] = "auto"
    """Whether of a JPEG image that a GPU decodes for --crop resized the crop alone is decoded. `auto`: where the
    installed nvImageCodec is not known to crash on it."""
    index: Path | None = None
    """Folder in which listings of the data are kept, so that the next start is quick. None: .index beside the run."""
    max_bad_share: float = 0.01
    """Share of the images that may turn out unusable before the run stops; they are named in quarantine.csv, and
    others take their places."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a CUDA device when there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: bf16 autocast over fp32 master weights. `auto`: bf16 where the device multiplies it natively."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile. `auto`: on for CUDA, off for the CPU."""
    kernels: Literal["auto", "on", "off"] = "auto"
    """Triton kernels around the trunk, or plain PyTorch. `auto`: on for CUDA. `on` without CUDA needs
    TRITON_INTERPRET=1 in the environment and is for tests."""
    trunk: Literal["auto", "fused", "plain"] = "auto"
    """The trunk's stages as Triton kernels, or as plain PyTorch. `auto`: fused where a committed measurement shows it
    winning, on no device yet. `fused` takes widths in multiples of 0.25."""
    norm: Literal["auto", "torch", "numba"] = "auto"
    """Batch norm and ReLU of bf16 maps on a CPU, uncompiled and without --sync-bn: PyTorch's kernels, or ones that
    numba compiles. `auto`: numba's where it is installed."""
    sgd: Literal["torch", "apex"] = "torch"
    """Whose fused update: PyTorch's, or FusedSGD of NVIDIA Apex, which is built from source and for CUDA alone."""
    deterministic: bool = False
    """The same bits again on the same device: PyTorch's deterministic algorithms, slower on CUDA. A CPU repeats anyway,
    with the same number of threads."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    log_every: int = 50
    """Steps that a line of metrics.jsonl is the mean of."""
    evaluate_every: int = 250
    """Steps between evaluations: in pretraining on held-out images, in finetuning on test images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size", "checkpoint_every", "log_every", "evaluate_every"):
            value = getattr(self, name)
            require(value >= 1, f"{flag(name)} {value}: must be at least 1")
        require(
            self.keep_checkpoints >= 2,
            f"--keep-checkpoints {self.keep_checkpoints}: must be at least 2, "
            "so that a damaged newest one does not lose the run",
        )
        if self.micro_batch_size is not None:
            require(
                self.micro_batch_size >= 1 and self.batch_size % self.micro_batch_size == 0,
                f"--micro-batch-size {self.micro_batch_size}: must divide --batch-size {self.batch_size}",
            )
        require_local("--out", self.out)
        require_local("--index", self.index)
        require(math.isfinite(self.lr) and self.lr > 0, f"--lr {self.lr}: must be a finite number above 0")
        require(0 <= self.momentum < 1, f"--momentum {self.momentum}: must be at least 0 and below 1")
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"--weight-decay {self.weight_decay}: must be a finite number, at least 0",
        )
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must be at least 0 and below 2**63")
        require(0 < self.min_area <= 1, f"--min-area {self.min_area}: must be above 0 and at most 1")
        require(
            self.loader_threads is None or 1 <= self.loader_threads <= 1024,
            f"--loader-threads {self.loader_threads}: must be at least 1 and at most 1024",
        )
        require(
            self.hardware_share is None or 0 <= self.hardware_share <= 1,
            f"--hardware-share {self.hardware_share}: must be at least 0 and at most 1",
        )
        require(
            not (self.deterministic and self.hardware_share),
            f"--hardware-share {self.hardware_share}: goes against --deterministic, for which the hardware decoder is"
            " not used; leave one of them out",
        )
        require(0 <= self.max_bad_share <= 1, f"--max-bad-share {self.max_bad_share}: must be at least 0 and at most 1")
        require(1 <= self.prefetch <= 64, f"--prefetch {self.prefetch}: must be at least 1 and at most 64")
        require(0 <= self.pad < self.image_size, f"--pad {self.pad}: must be at least 0 and below --image-size")
        require(all(0 <= m <= 1 for m in self.mean), f"--mean {self.mean}: each must be in [0, 1]")
        require(all(0 < s <= 1 for s in self.std), f"--std {self.std}: each must be above 0 and at most 1")
