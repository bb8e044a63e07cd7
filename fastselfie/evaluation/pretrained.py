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


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the pretraining run at ``path``.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        raise UserError(f"--from {path}: there is no such folder; name the folder of a pretraining run")
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
    return read_encoder(path)


def read_encoder(path: Path) -> Pretrained:
    """The weights that the pretraining run at ``path`` ended with.

    Raises:
        UserError: it is not finished, or they are damaged.
    """
    file = path / ENCODER
    try:
        data = file.read_bytes()
        weights = safetensors.torch.load(data)
    except FileNotFoundError:
        raise UserError(f"--from {path}: is not finished; run its command again to go on with it") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); pretrain again") from None
    return Pretrained(weights=weights, fingerprint=hashlib.sha256(data).hexdigest()[:16])
