"""Settings that would do nothing beside the others: who names one expects something of it."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from fastselfie.config.checks import flag, require
from fastselfie.config.finetuning import RESNET50, FinetuneConfig
from fastselfie.config.pretraining import PretrainConfig
from fastselfie.config.run import RunConfig

C = TypeVar("C", bound=RunConfig)


def check_effect(config: RunConfig, default: RunConfig) -> None:
    """Refuse settings that are not those of ``default``, the recipe's, and have no effect.

    Not for settings that are read from a run's folder: it did what it did.

    Raises:
        UserError: names the first such setting and the one that leaves it nothing to do.
    """
    resized = config.crop == "resized"
    pads_nothing = ""
    if resized:
        pads_nothing = "--crop resized pads nothing; leave it out or take --crop pad"
    elif config.pad == 0:
        pads_nothing = "--pad 0 pads nothing; leave one of them out"
    idle = {
        "min_area": "" if resized else "--crop pad takes whole images; leave it out or take --crop resized",
        "pad": pads_nothing if resized else "",
        "pad_mode": pads_nothing,
        "dropout": _without_attention(config),
    }
    if isinstance(config, PretrainConfig):
        if not config.knn_every:
            idle["knn_images"] = "without --knn-every there are no neighbours; leave it out or add that"
        if not config.held_out:
            idle["evaluate_every"] = "--held-out 0 leaves nothing to evaluate on; leave one of them out"
    for name, why in idle.items():
        value = getattr(config, name)
        require(not why or value == getattr(default, name), f"{flag(name)} {value}: has no effect, {why}")


def without_idle_dropout(config: C, default: C) -> C:
    """``config`` with the dropout of ``default`` where there is no attention to leave out of: of several runs that are
    asked for together some may have it."""
    return dataclasses.replace(config, dropout=default.dropout) if _without_attention(config) else config


def _without_attention(config: RunConfig) -> str:
    """Why dropout has nothing to do, and the remedy; empty where it has."""
    if isinstance(config, FinetuneConfig) and config.encoder == RESNET50:
        return f"--encoder {RESNET50} has no dropout; leave it out or take --encoder resnet36-attention"
    if isinstance(config, PretrainConfig | FinetuneConfig):
        if config.pooler != "attention":
            return f"--pooler {config.pooler} has no dropout; leave it out or take --pooler attention"
        if config.pooler_depth == 0:
            return "--pooler-depth 0 has no dropout; leave one of them out"
    return ""
