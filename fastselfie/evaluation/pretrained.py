"""What a pretraining run hands to finetuning: its weights, and the shape that a network must have to take them."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastselfie.config import FinetuneConfig, ModelConfig
from fastselfie.errors import UserError
from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier
from fastselfie.training.run_folder import read_config
from fastselfie.training.session import ENCODER

# Settings that finetuning shares with the pretrained network: it cannot take the weights otherwise.
SHARED = (*(field.name for field in dataclasses.fields(ModelConfig) if field.name != "dropout"), "positions")
# Those, and what the weights are used to: defaults of finetuning, where a run to start from is named.
INHERITED = (*SHARED, "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A finished pretraining run.

    Attributes:
        weights: the Selfie network's state. fingerprint: a checksum of them.
    """

    weights: dict[str, Tensor]
    fingerprint: str

    def load_into(self, network: ResNet50Classifier | AttentionClassifier) -> None:
        """Give ``network`` what it takes of the weights."""
        network.load_pretrained(self.weights)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the pretraining run at ``path``.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        raise UserError(
            f"--from {path}: there is no such folder; name the folder of a pretraining run, or a .safetensors file"
        )
    record = read_config(path)
    if record["command"] != "pretrain":
        raise UserError(f"--from {path}: is a {record['command']} run; name the folder of a pretraining run")
    settings: dict[str, Any] = record["settings"]
    return settings


def read_pretrained(config: FinetuneConfig, path: Path) -> Pretrained:
    """The finished run at ``path``.

    Raises:
        UserError: it is not finished, damaged, or its network does not fit ``config``.
    """
    settings = read_settings(path)
    for name in SHARED:
        if getattr(config, name) != settings.get(name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {getattr(config, name)}: {path} was pretrained with {flag} {settings.get(name)}")
    if config.encoder == "resnet36-attention" and settings.get("pooler") == "none":
        raise UserError(
            f"--from {path}: was pretrained with --pooler none, so there is no pooler for --encoder {config.encoder}"
        )
    weights, fingerprint = read_weights(path, f"--from {path}")
    return Pretrained(weights=weights, fingerprint=fingerprint)


def read_weights(run: Path, named: str) -> tuple[dict[str, Tensor], str]:
    """The weights that the finished ``run`` ended with, and a checksum of them.

    Args:
        named: what to call the run in a refusal.

    Raises:
        UserError: it is not finished, or damaged.
    """
    file = run / ENCODER
    try:
        data = file.read_bytes()
        return safetensors.torch.load(data), hashlib.sha256(data).hexdigest()[:16]
    except FileNotFoundError:
        raise UserError(f"{named}: is not finished; run its command again to go on with it") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove the run and make it again") from None
