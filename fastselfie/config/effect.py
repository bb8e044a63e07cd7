"""Settings that do nothing beside the others: who names one expects something of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TypeVar

from fastselfie.config.checks import flag, label_share, require
from fastselfie.config.finetuning import RESNET36_ATTENTION, RESNET50, FinetuneConfig
from fastselfie.config.pretraining import PretrainConfig, without_context
from fastselfie.config.run import RunConfig

C = TypeVar("C", bound=RunConfig)


def idle(config: RunConfig) -> dict[str, str]:
    """Names of the settings that have no effect on the run, each with why and the remedy."""
    whys = _of_views(config) | _of_attention(config)
    if isinstance(config, PretrainConfig):
        whys |= _of_pretraining(config)
    if isinstance(config, FinetuneConfig):
        whys |= _of_finetuning(config)
    return {name: why for name, why in whys.items() if why}


def check_effect(config: RunConfig, default: RunConfig, names: Collection[str] | None = None) -> None:
    """Refuse settings that are not those of ``default``, the recipe's, and have no effect.

    Not for settings that are read from a run's folder: it did what it did.

    Args:
        names: only these are looked at. None: all.

    Raises:
        UserError: names the first such setting and the one that leaves it nothing to do.
    """
    for name, why in idle(config).items():
        value = getattr(config, name)
        said = value != getattr(default, name) and (names is None or name in names)
        require(not said, f"{flag(name)} {value}: has no effect, {why}")


def effective(config: C, default: C) -> C:
    """``config`` with those settings of ``default`` that have no effect: of several runs that are asked for in one
    command, a setting may be for some."""
    return dataclasses.replace(config, **{name: getattr(default, name) for name in idle(config)})


def _of_views(config: RunConfig) -> dict[str, str]:
    resized, pads_nothing = config.crop == "resized", ""
    if resized:
        pads_nothing = "--crop resized pads nothing; leave it out or take --crop pad"
    elif config.pad == 0:
        pads_nothing = "--pad 0 pads nothing; leave one of them out"
    whole = "" if resized else "--crop pad takes whole images; leave it out or take --crop resized"
    return {
        "min_area": whole,
        "region_decoding": whole,
        "pad": pads_nothing if resized else "",
        "pad_mode": pads_nothing,
    }


def _of_attention(config: RunConfig) -> dict[str, str]:
    """Of attention blocks where there are none. --heads may be said all the same, with the rest of a network's shape:
    pretraining and finetuning are then given the same words."""
    why = ""
    if isinstance(config, FinetuneConfig) and config.encoder == RESNET50:
        why = f"--encoder {RESNET50} has no attention; leave it out or take --encoder {RESNET36_ATTENTION}"
    elif isinstance(config, PretrainConfig | FinetuneConfig) and config.pooler != "attention":
        why = f"--pooler {config.pooler} has no attention; leave it out or take --pooler attention"
    elif isinstance(config, PretrainConfig | FinetuneConfig) and config.pooler_depth == 0:
        why = "--pooler-depth 0 has no attention; leave one of them out"
    return {"dropout": why}


def _of_pretraining(config: PretrainConfig) -> dict[str, str]:
    without = without_context(config.pooler, config.pooler_depth)
    return {
        "positions": f"with {without} nothing reads the encoder's features; leave one of them out" if without else "",
        "knn_images": "" if config.knn_every else "without --knn-every there are no neighbours; leave it out or add"
        " that",
        "evaluate_every": "" if config.held_out else "--held-out 0 leaves nothing to evaluate on; leave one of them"
        " out",
    }  # fmt: skip


def _of_finetuning(config: FinetuneConfig) -> dict[str, str]:
    resnet50, all_labels = config.encoder == RESNET50, label_share(config.labels) == 1 and not config.hold_back
    return {
        "positions": f"--encoder {RESNET50} has none; leave it out or take --encoder {RESNET36_ATTENTION}"
        if resnet50 else "",
        "label_seed": "every label is learned from; leave it out or take fewer --labels" if all_labels else "",
    }  # fmt: skip
