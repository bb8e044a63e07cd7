"""Settings of a run: frozen dataclasses that cannot be built with values that make no sense.

Nothing here imports torch, so that the command line answers at once. Field names are the command line's
(``batch_size`` is ``--batch-size``); docstrings under the fields are its help.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastselfie.errors import UserError

STAGE_WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
POOLER_DEPTH = 3
KNN_NEIGHBOURS, KNN_TEMPERATURE = 20, 0.07
"""Of the weighted nearest neighbours, as usual for frozen features (Wu et al. 2018 take 200 and 0.07)."""


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks' shape (paper, sections 2.1, 2.2 and 3.2)."""

    image_size: int = 32
    """Pixels a side of the images that the network sees."""
    patch: int = 8
    """Pixels a side of a patch; divides the image size. Decides the stem: 7x7 stride 2 and max-pooling from 32 on."""
    width: float = 1.0
    """Multiplies every channel count: 1.0 is ResNet-50's."""
    heads: int = 32
    """Attention heads of the pooler; divides 1024 * width."""
    dropout: float = 0.1
    """Dropout of the pooler, on attention weights and on both outputs of a block."""

    def __post_init__(self) -> None:
        require(self.patch >= 4, f"--patch {self.patch}: a patch has at least 4 pixels a side")
        require(
            self.image_size % self.patch == 0 and self.image_size // self.patch >= 2,
            f"--image-size {self.image_size}: must be a multiple of --patch {self.patch}, and at least twice it",
        )
        require(0 < self.width <= 16, f"--width {self.width}: must be above 0 and at most 16")
        base = STAGE_WIDTHS[0] * self.width
        require(base == int(base), f"--width {self.width}: 64 * width must be a whole number of channels")
        require(
            self.heads >= 1 and self.features % self.heads == 0,
            f"--width {self.width}: {self.features} features do not divide into {self.heads} heads;"
            f" take a width of which 1024 * width is a multiple of --heads",
        )
        require(0 <= self.dropout < 1, f"--dropout {self.dropout}: must be at least 0 and below 1")

    @property
    def grid(self) -> int:
        """Patches a side, G."""
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        """Patches an image, N."""
        return self.grid**2

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Bottleneck channels of the four stages; a stage puts out four times as many."""
        return tuple(int(width * self.width) for width in STAGE_WIDTHS)

    @property
    def features(self) -> int:
        """Channels that the trunk puts out, D."""
        return EXPANSION * int(STAGE_WIDTHS[2] * self.width)

    @property
    def intermediate(self) -> int:
        """Features between the two linear layers of an attention block: 640 at D = 1024 (paper, section 3.2)."""
        return 5 * self.features // 8


@dataclass(frozen=True, kw_only=True)
class RunConfig(ModelConfig):
    """What pretraining and finetuning have in common."""

    recipe: str
    """The recipe that these settings started from."""
    data: str | None = None
    """A folder of JPEG or PNG files (train/ and val/ with class folders, or flat), cifar-10-batches-py or its tar.gz,
    a folder of ImageNet 32x32 batches, or synthetic. None downloads CIFAR-10."""
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
    """Batch-norm statistics over all processes (CUDA only)."""
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
    """Steps between evaluations on held-out images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size", "checkpoint_every", "log_every", "evaluate_every"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")
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


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Finetuning on labels (paper, section 2.3), from a pretrained run or from scratch."""

    pretrained: Path | None = None
    """A pretraining run's folder to start from, or a .safetensors file, a ResNet-50v2 by timm's names."""
    scratch: bool = False
    """Start from fresh weights: the supervised baseline."""
    encoder: Literal["resnet50", "resnet36-attention"] = "resnet50"
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
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            require(
                self.encoder != "resnet50" or value == default,
                f"{flag} {value}: --encoder resnet50 has no pooler; leave it out or take --encoder resnet36-attention",
            )
        require(
            self.pooler_weights == "pretrained" or not self.scratch,
            f"--pooler-weights {self.pooler_weights}: with --scratch everything is fresh; leave it out",
        )


def require_pooler_depth(pooler: str, depth: int) -> None:
    """Raise `UserError` unless a pooler of that kind can have ``depth`` attention blocks."""
    require(0 <= depth <= 4, f"--pooler-depth {depth}: must be at least 0 and at most 4")
    require(
        pooler == "attention" or depth == POOLER_DEPTH,
        f"--pooler-depth {depth}: --pooler {pooler} has no attention blocks; leave it at {POOLER_DEPTH}",
    )


def visible_patches(keep: float, patches: int) -> int:
    """n = floor(keep * N + 0.5): how many of N patches the encoder sees."""
    return math.floor(keep * patches + 0.5)


def label_share(labels: str) -> float:
    """The share in (0, 1] that a text such as ``8%`` means.

    Raises:
        UserError: not a percentage, or not above 0% and at most 100%.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", labels.strip())
    require(match is not None, f"--labels {labels}: write a percentage such as 8%")
    assert match is not None
    share = float(match[1]) / 100
    require(0 < share <= 1, f"--labels {labels}: must be above 0% and at most 100%")
    return share
