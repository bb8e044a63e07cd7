"""Whether finetuning goes with the pretraining that it starts from, be that made here or given by ``--from``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastselfie.config import RESNET50, PretrainConfig, flag, require, without_context
from fastselfie.errors import UserError
from fastselfie.evaluation.pretrained import inherited
from fastselfie.protocol.settings import Asked


def own_pretraining(asked: Asked) -> PretrainConfig:
    """Settings of pretraining, without what was said to both stages and has an effect on finetuning alone: with
    nothing held out, ``--evaluate-every``."""
    pretrain = asked.pretrain
    if pretrain.held_out == 0 and pretrain.evaluate_every == asked.finetune.evaluate_every:
        return dataclasses.replace(pretrain, evaluate_every=asked.recipe[0].evaluate_every)
    return pretrain


def check_same_shape(asked: Asked, given: dict[str, Any] | None) -> None:
    """Refuse another shape of finetuning than pretraining has: the one would be taken for the other.

    Args:
        given: settings of the run that ``--from`` names, None without.

    Raises:
        UserError: names the setting, or encoders that need a pooler where pretraining has none.
    """
    settings = dataclasses.asdict(asked.pretrain) if given is None else given
    whose = "pretraining" if given is None else f"--from {asked.protocol.pretrained}"
    for name, theirs in inherited(settings, RESNET50).items():
        value = getattr(asked.finetune, name)
        require(
            value in (theirs, getattr(asked.recipe[1], name)),
            f"{flag(name, 'finetune')} {value}: {whose} has {theirs}, and finetuning takes it over; leave"
            " this out, or say it to both stages",
        )
    require(
        not without_context(settings["pooler"], settings["pooler_depth"])
        or asked.protocol.encoder_names == (RESNET50,),
        f"--encoders {asked.protocol.encoders}: {whose} has no pooler that an image could be classified by;"
        f" take --encoders {RESNET50}",
    )


def check_given_has(asked: Asked, given: Mapping[str, Any], settings: Mapping[str, Any], variant: str) -> None:
    """Refuse a variant whose ``settings`` of pretraining the run that ``--from`` names was not made with.

    Raises:
        UserError: names the first such setting.
    """
    for name, value in settings.items():
        if given.get(name) != value:
            raise UserError(
                f"--from {asked.protocol.pretrained}: has {flag(name)} {given.get(name)}, and {variant} needs {value};"
                " leave --from out, so that every pretraining is made here"
            )
