"""The command line of `fastselfie protocol`: its own options, and those of both stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from fastselfie.arguments import as_kind, parse, split_recipe
from fastselfie.config import POOLER_DEPTH, RESNET50, Encoder, FinetuneConfig, PretrainConfig, flag
from fastselfie.protocol.settings import Asked, ProtocolConfig
from fastselfie.recipes import recipe


@dataclass(frozen=True, kw_only=True)
class PretrainStage(PretrainConfig):
    """Every pretraining run: the options of `fastselfie pretrain`."""

    recipe: Annotated[str, tyro.conf.Suppress] = ""
    data: Annotated[str | None, tyro.conf.Suppress] = None
    out: Annotated[Path | None, tyro.conf.Suppress] = None
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A file of weights to start pretraining from; see `fastselfie export`."""


@dataclass(frozen=True, kw_only=True)
class FinetuneStage(FinetuneConfig):
    """Every finetuning run: the options of `fastselfie finetune`."""

    recipe: Annotated[str, tyro.conf.Suppress] = ""
    data: Annotated[str | None, tyro.conf.Suppress] = None
    out: Annotated[Path | None, tyro.conf.Suppress] = None
    seed: Annotated[int, tyro.conf.Suppress] = 0
    pretrained: Annotated[Path | None, tyro.conf.Suppress] = None
    scratch: Annotated[bool, tyro.conf.Suppress] = False
    encoder: Annotated[Encoder, tyro.conf.Suppress] = RESNET50
    labels: Annotated[str, tyro.conf.Suppress] = "100%"
    hold_back: Annotated[float, tyro.conf.Suppress] = 0.0
    # Finetuning has the pooler of its pretraining; a fresh one is a variant.
    pooler: Annotated[Literal["attention", "mean", "max"], tyro.conf.Suppress] = "attention"
    pooler_depth: Annotated[int, tyro.conf.Suppress] = POOLER_DEPTH
    pooler_weights: Annotated[Literal["pretrained", "fresh"], tyro.conf.Suppress] = "pretrained"


@dataclass(frozen=True, kw_only=True)
class ProtocolArguments(ProtocolConfig):
    """Subsets x seeds x {scratch, pretrained}: the paper's tables. Usage: fastselfie protocol RECIPE [options].

    An option of pretrain or finetune goes to every stage that has it; with --pretrain. or --finetune. before its name
    to that one alone, as in --steps 1000 --finetune.steps 500.
    """

    recipe: Annotated[str, tyro.conf.Suppress] = ""
    pretrained: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A finished pretraining run to start from. None: it is made first."""
    pretrain: PretrainStage
    finetune: FinetuneStage


def parse_protocol(words: Sequence[str]) -> Asked:
    """The protocol that ``RECIPE [options]`` means. Raises `UserError` in one line."""
    name, options = split_recipe("protocol", words)
    settings, program = recipe(name), f"fastselfie protocol {name}"
    start = ProtocolArguments(
        recipe=name, labels=settings.labels,
        pretrain=as_kind(PretrainStage, settings.pretrain), finetune=as_kind(FinetuneStage, settings.finetune),
    )  # fmt: skip
    parsed = parse(ProtocolArguments, _staged(options), program, start)
    return Asked(
        protocol=as_kind(ProtocolConfig, parsed),
        pretrain=as_kind(PretrainConfig, parsed.pretrain),
        finetune=as_kind(FinetuneConfig, parsed.finetune),
        recipe=(settings.pretrain, settings.finetune),
    )


def _staged(words: Sequence[str]) -> list[str]:
    """``words`` with a stage's prefix put before every option that is a stage's and has none."""
    own = _flags(ProtocolArguments)
    stages = {"pretrain": _flags(PretrainStage), "finetune": _flags(FinetuneStage)}
    groups: list[list[str]] = []  # an option with its values
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    staged = []
    for option, *values in groups:
        said, equals, value = option.partition("=")
        bare = flag(said.removeprefix("--")).replace("--no-", "--", 1)
        takers = [] if bare in own else [stage for stage, flags in stages.items() if bare in flags]
        for stage in takers:
            staged += [f"--{stage}.{said.removeprefix('--')}{equals}{value}", *values]
        if not takers:
            staged += [option, *values]
    return staged


def _flags(kind: type[Any]) -> set[str]:
    """What can be said to ``kind``."""
    fields = get_type_hints(kind, include_extras=True).items()
    return {flag(name) for name, hint in fields if tyro.conf.Suppress not in getattr(hint, "__metadata__", ())}
