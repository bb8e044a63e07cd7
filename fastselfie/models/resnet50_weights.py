"""The weights of a whole ResNet-50v2 under the names of timm's ``resnetv2_50``, and what each network takes of them.

The two differ in names, in timm's counters of batches, and in its classifier, which is a 1x1 convolution.
Shapes: F features of the last map, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fastselfie.config import ModelConfig
from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier
from fastselfie.models.selfie import Selfie
from fastselfie.models.weights import load_weights

COUNTER = ".num_batches_tracked"
HEAD = "head.fc.weight"
_RENAMED = (
    (r"^trunk\.stages\.(\d)\.(\d)\.", r"stages.\1.blocks.\2."),
    (r"\.shortcut\.", ".downsample.conv."),
    (r"^trunk\.", ""),
    (r"^classifier\.", "head.fc."),
)
_AHEAD_OF_STAGE_4 = ("trunk.stem.", *(f"trunk.stages.{stage}." for stage in range(3)))
_NORM_OF_STAGE_3 = "trunk.stages.3.0.norm1."


def timm_name(name: str) -> str:
    """What timm calls a tensor of `ResNet50Classifier`."""
    for ours, theirs in _RENAMED:
        name = re.sub(ours, theirs, name)
    return name


def to_timm(state: Mapping[str, Tensor], batches: int, fresh: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights of a `ResNet50Classifier` as timm's ``resnetv2_50`` loads them strictly.

    Args:
        state: on the CPU; without ``classifier.`` it is one of ``num_classes=0``. batches: that the running statistics
            have seen, for timm's counters, int64 scalars. fresh: names in ``state`` whose statistics have seen none.

    Returns:
        fp32 in plain row-major order, the classifier (C, F, 1, 1).
    """
    tensors = {}
    for name, value in state.items():
        value = value.contiguous()
        tensors[timm_name(name)] = value[:, :, None, None].contiguous() if name == "classifier.weight" else value
        if name.endswith(".running_var"):
            seen = 0 if name in fresh else batches
            tensors[timm_name(name).removesuffix(".running_var") + COUNTER] = torch.tensor(seen)
    return tensors


def expected_by_timm(config: ModelConfig, classes: int | None) -> dict[str, tuple[str, torch.Size]]:
    """Name here and shape of every tensor by its name in timm, without counters; no classifier where ``classes`` is
    None. The classifier's weight is (C, F)."""
    with torch.device("meta"):
        state = ResNet50Classifier(config, classes or 1).state_dict()
    kept = (name for name in state if classes is not None or not name.startswith("classifier."))
    return {timm_name(name): (name, state[name].shape) for name in kept}


def load_resnet50(network: ResNet50Classifier | AttentionClassifier | Selfie, weights: Mapping[str, Tensor]) -> None:
    """Take what fits of a whole ResNet-50v2's ``weights``, under the names of `ResNet50Classifier`.

    That network takes all, and the classifier where it has as many classes. The others take stem, stages 1 to 3, and
    stage 4's first norm as P's final one: the way that `ResNet50Classifier.load_pretrained` goes, backwards.

    Raises:
        KeyError: a name is missing. RuntimeError: a shape differs.
    """
    if isinstance(network, ResNet50Classifier):
        theirs = weights.get("classifier.weight")
        same = theirs is not None and theirs.shape == network.classifier.weight.shape
        taken = {name: value for name, value in weights.items() if same or not name.startswith("classifier.")}
        load_weights(network, taken, fresh=() if same else ("classifier.",))
        return
    taken = {name: value for name, value in weights.items() if name.startswith(_AHEAD_OF_STAGE_4)}
    for name, value in weights.items():
        if name.startswith(_NORM_OF_STAGE_3):
            taken[name.replace(_NORM_OF_STAGE_3, "trunk.norm.")] = value
    load_weights(network, taken, fresh=("pooler.", "positions.", "classifier."))
