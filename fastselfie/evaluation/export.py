"""A finished run's ResNet-50v2 for other code: one .safetensors file under the names of timm's ``resnetv2_50``.

Pretraining gives stem, stages 1 to 3, and with P's final norm stage 4's first (paper, section 2.3). The rest of stage 4
and the final norm are fresh: the weights that finetuning with the run's seed would begin with.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

import fastselfie
from fastselfie.config import RESNET50, FinetuneConfig, ModelConfig, PretrainConfig
from fastselfie.errors import UserError
from fastselfie.evaluation.pretrained import read_weights
from fastselfie.files import replace_bytes
from fastselfie.models.encoders import NOT_PRETRAINED, ResNet50Classifier
from fastselfie.models.resnet50_weights import timm_name, to_timm
from fastselfie.models.weights import load_weights
from fastselfie.training.config_file import config_of, read_config
from fastselfie.training.session import seeded
from fastselfie.training.weights_header import SUFFIX

_TIMM_DIVISOR = 8  # timm rounds channel counts to multiples of it


def export(run: Path, to: Path) -> str:
    """Write the network of ``run`` to ``to``, whole or not at all.

    Returns:
        Lines for the user: what was written, what of it is fresh, and how timm takes it.

    Raises:
        UserError: the run is not finished or its network is no ResNet-50, or ``to`` is there already or cannot be
            written.
    """
    if to.suffix != SUFFIX:
        raise UserError(f"--to {to}: must end in {SUFFIX}; every other format has to be unpickled")
    if to.exists():
        raise UserError(f"--to {to}: is there already; name another file or remove it")
    config = config_of(run, read_config(run))
    if isinstance(config, FinetuneConfig) and config.encoder != RESNET50:
        raise UserError(
            f"{run}: finetuned {config.encoder}, whose pooler and classifier have no place in a ResNet-50; export the"
            " pretraining run, or finetune with --encoder resnet50"
        )
    if isinstance(config, FinetuneConfig) and config.trunk_input == "patches":
        raise UserError(
            f"{run}: was finetuned with --trunk-input patches, and a ResNet-50 elsewhere sees whole images; export the"
            " pretraining run, or finetune with --trunk-input image"
        )
    weights = read_weights(run, str(run)).weights
    try:
        state = _finetuned(config, weights) if isinstance(config, FinetuneConfig) else _pretrained(config, weights)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{run}: its weights are not of its config.json ({error}); restore the file") from None
    fresh = [name for name in state if isinstance(config, PretrainConfig) and name.startswith(NOT_PRETRAINED)]
    tensors = to_timm(state, config.steps, fresh)
    metadata = _metadata(config, [timm_name(name) for name in fresh])
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(to, safetensors.torch.save(tensors, metadata))
    except OSError as error:
        raise UserError(f"--to {to}: cannot be written ({error.strerror}); choose another file") from None
    return "\n".join([f"{to}: written, {len(tensors)} tensors", *_told(config, state, fresh)])


def _pretrained(config: PretrainConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trunk of a Selfie network's ``weights`` and a fresh stage 4, as finetuning makes it."""
    with torch.random.fork_rng(devices=[]):
        network = seeded(lambda: ResNet50Classifier(config, classes=1), config.seed)
    network.load_pretrained(weights)
    return {name: value for name, value in network.state_dict().items() if not name.startswith("classifier.")}


def _finetuned(config: FinetuneConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of a classifier's weights; that they fit is tried."""
    network = ResNet50Classifier(config, classes=len(weights["classifier.bias"]))
    load_weights(network, weights)
    return dict(network.state_dict())


def _metadata(config: PretrainConfig | FinetuneConfig, fresh: list[str]) -> dict[str, str]:
    """Texts for the file's header; what is no text is JSON."""
    told = {name: json.dumps(getattr(config, name)) for name in ("mean", "std", "width", "patch", "heads", "seed")}
    return told | {
        "recipe": config.recipe, "step": str(config.steps), "fresh": json.dumps(fresh), "architecture": "resnetv2_50",
        "command": "finetune" if isinstance(config, FinetuneConfig) else "pretrain", "format": "pt",
        "made_by": f"fastselfie {fastselfie.__version__}",
    }  # fmt: skip


def _told(config: ModelConfig, state: dict[str, Tensor], fresh: list[str]) -> list[str]:
    """What the user must know of the file."""
    lines = []
    if fresh:
        lines.append(
            f"fresh, not trained: stage 4 but for its first norm, and the final norm ({len(fresh)} tensors, named in"
            " the file's metadata)"
        )
    classes = len(state["classifier.bias"]) if "classifier.bias" in state else 0
    wider = "" if config.width == 1 else f", width_factor={config.width:g}"
    stem = state["trunk.stem.conv.weight"]
    if config.stage_channels[0] % _TIMM_DIVISOR:
        lines.append(
            f"timm has no width of {config.width:g}, only multiples of 0.125: this loads into plain PyTorch"
            " (examples/resnetv2.py)"
        )
        return lines
    lines.append(f"model = timm.create_model('resnetv2_50', num_classes={classes}{wider}) loads it strictly")
    if stem.shape[2] == 3:
        lines[-1] += ", once it has this stem, for which timm has no option:"
        lines.append(f"model.stem.conv = torch.nn.Conv2d(3, {len(stem)}, 3, padding=1, bias=False)")
        lines.append("model.stem.pool = torch.nn.Identity()")
    lines.append("its mean and std are in the metadata too; timm's own for this name are others")
    return lines
