"""The networks that a probe looks at: a pretraining run's as it was at some step, and an untrained one of its shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fastselfie.config import PretrainConfig
from fastselfie.errors import UserError
from fastselfie.evaluation.pretrained import Pretrained, read_encoder, read_settings
from fastselfie.evaluation.probe_config import ProbeConfig
from fastselfie.models.selfie import Selfie
from fastselfie.models.weights import fingerprint, load_weights, to_safetensors
from fastselfie.training import checkpoint
from fastselfie.training.session import ENCODER, make_network
from fastselfie.training.world import World

# What a probe asks for itself; everything else is the run's.
_ASKED = (
    *("data", "out", "batch_size", "loader_threads", "prefetch", "decoder", "hardware_share", "index"),
    *("max_bad_share", "device", "precision", "kernels"),
)


def frozen_settings(config: ProbeConfig, path: Path) -> PretrainConfig:
    """The settings of the pretraining run at ``path``, with this probe's images and machine: nothing is trained.

    Raises:
        UserError: there is no such run, its settings are damaged, or one of the probe's makes no sense.
    """
    settings: dict[str, Any] = read_settings(path)
    for name in ("mean", "std"):
        settings[name] = tuple(settings.get(name) or ())
    plain = {
        "compile": "off",
        "trunk": "plain",
        "norm": "torch",
        "sgd": "torch",
        "deterministic": False,
        "sync_bn": False,
        "region_decoding": "auto",
    }
    try:
        run = PretrainConfig(**{**settings, **plain, "micro_batch_size": None, "out": None, "index": None})
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'config.json'}: {error}; restore the file") from None
    return dataclasses.replace(run, **{name: getattr(config, name) for name in _ASKED})


def weights_after(path: Path, run: PretrainConfig, step: int | None) -> tuple[Pretrained, int]:
    """The weights of the run at ``path`` after ``step`` steps, or at its end; and after how many steps that is.

    Raises:
        UserError: they are not there, or damaged.
    """
    if step is None:
        if not (path / ENCODER).exists():
            raise UserError(
                f"--from {path}: is not finished; run its command again to go on with it, or name a checkpoint of it"
                " with --checkpoint"
            )
        return read_encoder(path), run.steps
    folder = path / "checkpoints"
    saved = checkpoint.saved_steps(folder)
    if step not in saved:
        there = ", ".join(map(str, saved)) or "none"
        raise UserError(f"--checkpoint {step}: {path} has no checkpoint of that step; there are: {there}")
    weights = checkpoint.load(folder, step).weights
    return Pretrained(weights=weights, fingerprint=fingerprint(to_safetensors(weights))), step


def frozen_network(run: PretrainConfig, world: World, weights: Pretrained | None) -> Selfie:
    """The network in evaluation mode, with ``weights``, or with those that its run began with.

    Raises:
        UserError: the weights are not those of this shape.
    """
    network = make_network(lambda: Selfie(run), run, world)
    if weights is not None:
        try:
            load_weights(network, weights.weights)
        except (KeyError, RuntimeError):
            raise UserError("--from: its weights do not fit the settings in its config.json; restore it") from None
    return network.eval()
