"""A ResNet-50v2 in a .safetensors file, under timm's names, as the weights that a run starts from.

What `fastselfie export` writes, or what was saved from timm's ``resnetv2_50``: names and shapes must all fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastselfie.config import ModelConfig
from fastselfie.errors import UserError
from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier
from fastselfie.models.resnet50_weights import COUNTER, HEAD, expected_by_timm, load_resnet50
from fastselfie.models.selfie import Selfie
from fastselfie.models.weights import fingerprint
from fastselfie.training.weights_header import STEM, read_header


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """A whole ResNet-50v2.

    Attributes:
        path: of the file. weights: under the names of `ResNet50Classifier`, fp32. classes: of its classifier, None
            where it has none. fingerprint: a checksum of the file. tells_pixels: whether it says its mean and std.
    """

    path: Path
    weights: dict[str, Tensor]
    classes: int | None
    fingerprint: str
    tells_pixels: bool

    def load_into(self, network: ResNet50Classifier | AttentionClassifier | Selfie) -> None:
        """Give ``network`` what it takes of the weights, see `load_resnet50`."""
        load_resnet50(network, self.weights)

    def told(self, takes: str) -> str:
        """A line for the user on ``takes``, which says what is taken and what stays fresh."""
        pixels = "" if self.tells_pixels else "; it does not say its --mean and --std: these are the recipe's"
        return f"\nfrom {self.path}: {takes}{pixels}"


TRUNK_ALONE = "stem, stages 1 to 3 and the norm behind them; all else is fresh"


def read_starting_point(config: ModelConfig, path: Path) -> StartingPoint:
    """The weights in ``path``, which must be those of a ResNet-50v2 of the width and stem that ``config`` has.

    Raises:
        UserError: the file is damaged or of another kind, or a tensor is missing, unknown, of another shape or not
            finite; names the first.
    """
    header = read_header(path)
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
    except (SafetensorError, OSError) as error:
        raise UserError(f"--from {path}: cannot be read ({error}); export or save it again") from None
    head = tensors.get(HEAD)
    classes = len(head) if head is not None and head.dim() else None
    return StartingPoint(
        path=path, weights=_fitting(config, path, tensors, classes), classes=classes,
        fingerprint=fingerprint(data), tells_pixels={"mean", "std"} <= header.metadata.keys(),
    )  # fmt: skip


def _fitting(config: ModelConfig, path: Path, tensors: dict[str, Tensor], classes: int | None) -> dict[str, Tensor]:
    """``tensors`` under the names here, all of them looked at."""
    expected = expected_by_timm(config, classes)
    counters = {name.removesuffix(".running_var") + COUNTER for name in expected if name.endswith(".running_var")}
    unknown = [name for name in tensors if name not in expected and name not in counters]
    if any(name.startswith("trunk.") for name in unknown):
        raise UserError(
            f"--from {path}: has {unknown[0]}, a name of FastSelfie's own; name the run's folder, or the file that"
            " fastselfie export makes of it"
        )
    for name in (name for name in expected if name not in tensors):
        raise UserError(f"--from {path}: has no {name}, which timm's resnetv2_50 has; give weights of that network")
    for name in unknown:
        raise UserError(f"--from {path}: has {name}, which timm's resnetv2_50 has not; give weights of that network")
    fitting = {}
    for name, (ours, shape) in expected.items():
        value = tensors[name].flatten(1) if name == HEAD else tensors[name]
        if value.shape != shape:
            raise UserError(_other_shape(config, path, name, tensors[name].shape, shape))
        if not (value.is_floating_point() and value.isfinite().all()):
            raise UserError(f"--from {path}: {name} holds what is no finite number; save it from whole weights")
        fitting[ours] = value.to(torch.float32)
    return fitting


def _other_shape(config: ModelConfig, path: Path, name: str, has: torch.Size, shape: torch.Size) -> str:
    has_text, needed = ("x".join(map(str, size)) or "a scalar" for size in (has, shape))
    line = f"--from {path}: {name} is {has_text}, and --width {config.width:g} --patch {config.patch} need {needed}"
    if name == STEM and len(has) == 4 and has[0] == shape[0]:
        side = "32 pixels or more, as imagenet224 has" if has[2] == 7 else "less than 32 pixels, as cifar10 has"
        return f"{line}; a {has[2]}x{has[3]} stem goes with patches of {side}"
    return f"{line}; leave --width out to take the file's"
