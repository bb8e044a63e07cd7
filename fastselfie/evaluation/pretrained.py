"""What a pretraining run hands to finetuning: its weights, and the shape that a network must have to take them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastselfie.config import (
    RESNET36_ATTENTION,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    flag,
    idle,
    without_context,
)
from fastselfie.errors import UserError
from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier
from fastselfie.models.weights import fingerprint
from fastselfie.training.config_file import read_config, with_defaults
from fastselfie.training.session import ENCODER

# Settings that finetuning shares with the pretrained network: it cannot take the weights otherwise. The last ones are
# of the pooler, for an encoder that takes that too.
SHAPE = tuple(field.name for field in dataclasses.fields(ModelConfig) if field.name != "dropout")
SHARED, POOLER = (*SHAPE, "positions"), ("pooler", "pooler_depth")
# Those, and what the weights are used to: defaults of finetuning, where a run to start from is named.
INHERITED = (*SHARED, "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights of a pretraining run, at its end or at a checkpoint.

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
        what = "is a file" if path.exists() else "there is no such folder"
        raise UserError(f"--from {path}: {what}; name the folder of a pretraining run")
    record = read_config(path)
    if record["command"] != "pretrain":
        raise UserError(f"--from {path}: is a {record['command']} run; name the folder of a pretraining run")
    settings: dict[str, Any] = with_defaults(PretrainConfig, record["settings"])
    return settings


def inherited(settings: dict[str, Any], encoder: str) -> dict[str, Any]:
    """Fields of `FinetuneConfig` that finetuning ``encoder`` takes over from the `read_settings` of a run, unless told
    otherwise. Those of the pooler come with the only encoder that has one."""
    names, taken = INHERITED, {}
    if encoder == RESNET36_ATTENTION and not without_context(settings["pooler"], settings["pooler_depth"]):
        names, taken = (*INHERITED, *POOLER), {"encoder": encoder}
    return taken | {name: tuple(v) if isinstance(v := settings[name], list) else v for name in names}


def read_pretrained(config: FinetuneConfig, path: Path) -> Pretrained:
    """The finished run at ``path``.

    Raises:
        UserError: it is not finished, damaged, or its network does not fit ``config``.
    """
    settings = read_settings(path)
    takes_pooler = config.encoder == RESNET36_ATTENTION and config.pooler_weights == "pretrained"
    without = without_context(settings["pooler"], settings["pooler_depth"])
    if takes_pooler and without:
        raise UserError(
            f"--from {path}: was pretrained with {without}, so there is no pooler for --encoder {config.encoder};"
            " take --pooler-weights fresh or --encoder resnet50"
        )
    for name in _must_agree(config, takes_pooler):
        if getattr(config, name) != settings[name]:
            raise UserError(
                f"{flag(name)} {getattr(config, name)}: {path} was pretrained with {flag(name)} {settings[name]}"
            )
    return read_encoder(path)


def _must_agree(config: FinetuneConfig, takes_pooler: bool) -> list[str]:
    """Settings in which ``config`` must agree with the run that it starts from."""
    names = (*SHARED, *POOLER) if takes_pooler else SHAPE
    return [name for name in names if name not in idle(config)]


def read_encoder(path: Path) -> Pretrained:
    """The weights that the pretraining run at ``path`` ended with.

    Raises:
        UserError: it is not finished, or they are damaged.
    """
    return read_weights(path, f"--from {path}")


def read_weights(run: Path, named: str) -> Pretrained:
    """The weights that the finished ``run`` ended with.

    Args:
        named: what to call the run in a refusal.

    Raises:
        UserError: it is not finished, or damaged.
    """
    file = run / ENCODER
    try:
        data = file.read_bytes()
        return Pretrained(weights=safetensors.torch.load(data), fingerprint=fingerprint(data))
    except FileNotFoundError:
        raise UserError(f"{named}: is not finished; run its command again to go on with it") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove the run and make it again") from None
