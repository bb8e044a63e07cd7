"""Whether what is asked of both stages makes sense together: finetuning goes with the pretraining that it starts from,
be that made here or given by ``--from``, and no setting is asked for in vain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastselfie.config import RESNET50, FinetuneConfig, PretrainConfig, RunConfig, flag, idle, require, without_context
from fastselfie.errors import UserError
from fastselfie.evaluation.pretrained import inherited
from fastselfie.protocol.settings import Asked


def check_said(asked: Asked, pretrainings: Sequence[PretrainConfig], finetunings: Sequence[FinetuneConfig]) -> None:
    """Refuse what is asked for and has an effect on none of the runs. What was said to both stages may have it on one.

    Args:
        pretrainings, finetunings: settings of the runs, with what has no effect on some of them.

    Raises:
        UserError: names the first such setting.
    """
    pretrain, finetune = asked.pretrain, asked.finetune
    heard = _heard(pretrain, pretrainings) | _heard(finetune, finetunings)
    if asked.protocol.probes:
        heard.add(("label_seed", finetune.label_seed))  # of probes it decides what their linear classifier holds back
    stages: tuple[tuple[str, RunConfig, RunConfig, RunConfig, Sequence[RunConfig]], ...]
    stages = (
        ("pretrain", pretrain, finetune, asked.recipe[0], pretrainings),
        ("finetune", finetune, pretrain, asked.recipe[1], finetunings),
    )
    for stage, said, other, default, runs in stages:
        for name, why in idle(runs[0]).items() if runs else ():
            value = getattr(said, name)
            both = getattr(other, name, None) == value
            require(
                value == getattr(default, name) or (name, value) in heard,
                f"{flag(name, '' if both else stage)} {value}: has no effect, {why}",
            )


def _heard(said: RunConfig, runs: Iterable[RunConfig]) -> set[tuple[str, Any]]:
    """What is said to a stage and has an effect on one of its ``runs`` or more: name and value."""
    names = {field.name for field in dataclasses.fields(said)}
    return {(name, getattr(said, name)) for run in runs for name in names - idle(run).keys()}


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
