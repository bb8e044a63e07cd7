"""From what is asked to the runs that answer it. Nothing here runs anything."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastselfie.config import FinetuneConfig, PretrainConfig, RunConfig, check_effect, effective
from fastselfie.errors import UserError
from fastselfie.evaluation.pretrained import inherited, read_settings
from fastselfie.protocol.command import words_of
from fastselfie.protocol.measured import BASE
from fastselfie.protocol.probing import moments, probe_tasks
from fastselfie.protocol.settings import Asked
from fastselfie.protocol.stages import check_given_has, check_said, check_same_shape
from fastselfie.protocol.task import RunTask
from fastselfie.protocol.variants import ALL, VARIANTS, variant_names

SCRATCH, PRETRAINED = "scratch", "pretrained"
HELD_BACK = 0.1
"""Share of the labels that a trial is judged by (paper, section 3.2)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Settings that ``--tune`` chooses; None for what it did not. lr: of finetuning."""

    lr: float | None = None
    keep: float | None = None
    pretrain_lr: float | None = None

    @property
    def chosen(self) -> dict[str, float]:
        """Those that it chooses, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Which of the finetuning runs: all but the seed. What is tuned for itself."""

    encoder: str
    labels: str
    start: Literal["scratch", "pretrained"]
    variant: str = BASE

    @property
    def base(self) -> Kind:
        """The same of the base."""
        return dataclasses.replace(self, variant=BASE)

    @property
    def name(self) -> str:
        """Part of a folder's name."""
        return f"{self.encoder}-{self.labels.rstrip('%')}-{self.start}"


class Planner:
    """Makes tasks. The same question always gives a task of the same folder and words."""

    def __init__(self, asked: Asked, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        started = asked.protocol.pretrained
        self._given = None if started is None else read_settings(started)
        check_same_shape(asked, self._given)
        self.left_out: dict[str, str] = {}
        """Variants that `all` would have and these settings cannot, and why."""
        self.variants = self._variants()

    def _variants(self) -> tuple[str, ...]:
        """The base and the variants that are asked for.

        Raises:
            UserError: one that was named makes no sense with these settings.
        """
        names = variant_names(self.asked.protocol.variants)
        for name in names:
            settings = VARIANTS[name].pretrain
            try:
                check_effect(dataclasses.replace(self.asked.pretrain, **settings), self.asked.recipe[0], settings)
            except UserError as error:
                if ALL not in map(str.strip, self.asked.protocol.variants.split(",")):
                    raise UserError(f"--variants {name}: {error}") from None
                self.left_out[name] = str(error)
        return tuple(name for name in names if name not in self.left_out)

    def check_said(self) -> None:
        """Refuse settings that have an effect on none of the runs. Raises as `stages.check_said` does."""
        base, made = self.asked.pretrain, self.variants if self._given is None else ()
        tuned = {False, self.asked.protocol.tune}
        check_said(
            self.asked,
            [dataclasses.replace(base, **VARIANTS[name].pretrain) for name in made],
            [self._finetuning(kind, 0, Point(), tuning=tuning) for kind in self.kinds() for tuning in tuned],
        )

    def kinds(self) -> list[Kind]:
        """Every kind of finetuning run that is asked for: base from scratch and pretrained, then the ablations.

        An ablation is from scratch too where its network is another than base's.
        """
        protocol, found = self.asked.protocol, []
        for variant in self.variants:
            for encoder in protocol.encoder_names:
                if encoder in VARIANTS[variant].encoders:
                    baseline = variant == BASE or VARIANTS[variant].other_network(encoder)
                    starts: tuple[Literal["scratch", "pretrained"], ...]
                    starts = ("scratch", "pretrained") if baseline else ("pretrained",)
                    found += [
                        Kind(encoder=encoder, labels=labels, start=start, variant=variant)
                        for labels in protocol.label_shares
                        for start in starts
                    ]
        return found

    def pretraining(self, variant: str, point: Point = Point()) -> RunTask | None:
        """The pretraining run of a variant; None where one was given.

        Raises:
            UserError: a pretraining run was given, and the variant needs another.
        """
        changes = dict(VARIANTS[variant].pretrain)
        tuned = {"keep": point.keep, "lr": point.pretrain_lr}
        changes |= {name: value for name, value in tuned.items() if value is not None and name not in changes}
        if self._given is not None:
            check_given_has(self.asked, self._given, changes, variant)
            return None
        base = self.asked.pretrain
        if self.asked.protocol.probes > 1:
            steps = moments(self.asked)
            base = dataclasses.replace(base, checkpoint_every=steps[0], keep_checkpoints=len(steps))
        changes = {name: value for name, value in changes.items() if value != getattr(base, name)}
        name = f"pretrain/{_named(changes) or BASE}"
        config = dataclasses.replace(base, **changes, data=self.asked.protocol.data, out=self.folder / name)
        return self._task(name, "pretrain", effective(config, self.asked.recipe[0]), None)

    def finetuning(self, kind: Kind, seed: int, point: Point = Point(), *, tuning: bool = False) -> RunTask:
        """One finetuning run; ``tuning`` judges it by labels held back.

        The base's, where the variant changes nothing here: three quarters may be what the base sees already.
        """
        config = self._finetuning(kind, seed, point, tuning=tuning)
        base = self._finetuning(kind.base, seed, point, tuning=tuning)
        if dataclasses.replace(config, out=base.out) == base:
            config = base
        assert config.out is not None
        needs = None if kind.start == SCRATCH else self.pretraining(kind.variant, point)
        return self._task(str(config.out.relative_to(self.folder)), "finetune", config, needs)

    def _finetuning(self, kind: Kind, seed: int, point: Point, *, tuning: bool) -> FinetuneConfig:
        protocol = self.asked.protocol
        changes: dict[str, Any] = dict(VARIANTS[kind.variant].finetune)
        if point.lr is not None:
            changes["lr"] = point.lr
        changes |= self._shape(kind)
        if kind.start == SCRATCH:
            changes["scratch"] = True
        else:
            pretraining = self.pretraining(kind.variant, point)
            changes["pretrained"] = protocol.pretrained if pretraining is None else pretraining.folder
        label_seed = seed if protocol.vary_labels else self.asked.finetune.label_seed
        name = f"finetune/{kind.variant}/{kind.name}-{seed}"
        if tuning:
            changes["hold_back"] = HELD_BACK
            name = f"tune/{kind.variant}/{kind.name}/{_named(point.chosen)}"
        config = dataclasses.replace(
            self.asked.finetune, **changes, data=protocol.data, out=self.folder / name, labels=kind.labels,
            label_seed=label_seed, seed=seed,
        )  # fmt: skip
        return effective(config, self.asked.recipe[1])

    def probes(self, variant: str, point: Point = Point()) -> list[RunTask]:
        """Classifiers on the frozen features of a variant's pretraining run. Raises as `probe_tasks` does."""
        return probe_tasks(self.asked, self.folder, self.pretraining(variant, point))

    def _shape(self, kind: Kind) -> dict[str, Any]:
        """The network's shape and the pixels' statistics, which finetuning has as pretraining has them."""
        settings = self._given
        if settings is None:
            variant = VARIANTS[kind.variant].pretrain
            settings = dataclasses.asdict(dataclasses.replace(self.asked.pretrain, **variant))
        return inherited(settings, kind.encoder) | {"encoder": kind.encoder}

    def _task(self, name: str, command: str, config: RunConfig, needs: RunTask | None) -> RunTask:
        default = self.asked.recipe[0 if isinstance(config, PretrainConfig) else 1]
        assert config.out is not None
        words = (command, config.recipe, *words_of(config, default))
        return RunTask(name=name, folder=config.out, words=words, steps=config.steps, needs=needs)


def _named(settings: dict[str, Any]) -> str:
    """Settings as part of a folder's name, such as ``keep=0.5,lr=0.1``."""
    return ",".join(f"{name}={value}" for name, value in settings.items())
