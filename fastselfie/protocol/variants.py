"""Ablations by name: what each changes in pretraining or in finetuning, and nothing else.

They answer the questions of the paper's readers: no ablations of encoder, pooler and sampling of patches were
published. Each is compared with ``base`` at the same seeds; ``control`` tells what is left without any context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastselfie.config import ENCODERS, POOLER_DEPTH, RESNET36_ATTENTION, RESNET50
from fastselfie.errors import UserError
from fastselfie.protocol.measured import BASE, CONTROL

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from the base.

    Attributes:
        about: for a reader of the table. pretrain, finetune: settings by name. encoders: those that it means anything
            for. With nothing in ``pretrain`` it starts from base's weights.
    """

    about: str
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] = ENCODERS

    def other_network(self, encoder: str) -> bool:
        """Whether it finetunes another network than base does, so that it has a baseline of its own from scratch."""
        of_pooler = {"pooler", "pooler_depth", "positions"}.intersection(self.pretrain)
        return "trunk_input" in self.finetune or (encoder == RESNET36_ATTENTION and bool(of_pooler))


def _without_blocks(pooler: str) -> dict[str, Any]:
    """A pooler that has no attention blocks, whatever depth the recipe was asked for with."""
    return {"pooler": pooler, "pooler_depth": POOLER_DEPTH}


VARIANTS: dict[str, Variant] = {
    BASE: Variant(about="the recipe as asked for"),
    CONTROL: Variant(
        about="pretrained without context, u = 0", pretrain=_without_blocks("none"), encoders=(RESNET50,)
    ),
    "keep-0.75": Variant(about="three quarters of the patches are seen", pretrain={"keep": 0.75}),
    "keep-0.5": Variant(about="half of the patches is seen", pretrain={"keep": 0.5}),
    "positions-query": Variant(about="positions are added to u alone", pretrain={"positions": "query"}),
    "logit-scale-none": Variant(about="scores are not divided by sqrt(D)", pretrain={"logit_scale": "none"}),
    "pooler-mean": Variant(about="u is the mean of the visible patches", pretrain=_without_blocks("mean")),
    "pooler-max": Variant(about="u is their maximum", pretrain=_without_blocks("max")),
    "pooler-depth-0": Variant(
        about="u is u0: learned, the same for every image", pretrain={"pooler_depth": 0}, encoders=(RESNET50,)
    ),
    **{
        f"pooler-depth-{depth}": Variant(about=f"attention blocks: {depth}", pretrain={"pooler_depth": depth})
        for depth in range(1, 5)
    },
    "masks-batch": Variant(about="all images of a batch share one mask", pretrain={"masks": "batch"}),
    "pad-reflect": Variant(about="pretraining pads by reflection", pretrain={"pad_mode": "reflect"}),
    "pad-none": Variant(about="pretraining neither pads nor crops", pretrain={"pad": 0}),
    "position-std-0.02": Variant(about="position vectors start at N(0, 0.02)", pretrain={"position_std": 0.02}),
    "position-std-0.3": Variant(about="position vectors start at N(0, 0.3)", pretrain={"position_std": 0.3}),
    "trunk-patches": Variant(
        about="finetuning puts the trunk on patches, as pretraining does", finetune={"trunk_input": "patches"}
    ),
    "pooler-fresh": Variant(
        about="finetuning starts from a fresh pooler", finetune={"pooler_weights": "fresh"},
        encoders=(RESNET36_ATTENTION,),
    ),
}  # fmt: skip


def variant_names(asked: str) -> tuple[str, ...]:
    """Names in ``asked``, separated by commas, with what they are compared with in front: base, and the control where
    there is any other.

    Raises:
        UserError: there is none of that name.
    """
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in VARIANTS and name != ALL:
            raise UserError(
                f"--variants {name or repr('')}: there is none of that name; there are {', '.join(VARIANTS)}"
            )
    if ALL in names:
        return tuple(VARIANTS)
    others = [name for name in dict.fromkeys(names) if name not in (BASE, CONTROL)]
    return (BASE, *([CONTROL] if others or CONTROL in names else []), *others)
