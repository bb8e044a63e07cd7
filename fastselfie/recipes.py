"""Recipes: named starting points for both stages. A recipe is a function; a variant edits another in a few lines.

No recipe here has been run to its end yet, so none states a result: the paper's are in its table 1, ours will be in
``bench/results`` when they exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fastselfie.config import IMAGENET_MEAN, IMAGENET_STD, FinetuneConfig, PretrainConfig
from fastselfie.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of both stages on one kind of images. labels: the paper's shares of them, with figure 4's 2%."""

    pretrain: PretrainConfig
    finetune: FinetuneConfig
    labels: str = "2%,5%,8%,20%,100%"

    def changed(self, **settings: Any) -> Recipe:
        """The same with other ``settings`` of both stages."""
        return replace(self, pretrain=replace(self.pretrain, **settings), finetune=replace(self.finetune, **settings))


def cifar10() -> Recipe:
    """CIFAR-10 as in the paper, section 3.2: 120,000 steps of 512 images of 32x32, 8-pixel patches.

    Command: ``fastselfie pretrain cifar10``. The peak learning rate is one of the six that the paper tunes over.
    """
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Recipe(
        pretrain=PretrainConfig(recipe="cifar10", mean=mean, std=std),
        finetune=FinetuneConfig(recipe="cifar10", mean=mean, std=std),
    )


def imagenet32() -> Recipe:
    """ImageNet downsampled to 32x32, as in the paper, section 3.2: batch 1,024.

    Command: ``fastselfie pretrain imagenet32 --data FOLDER`` with the batches of Chrabaszcz et al. 2017.
    """
    base = cifar10().changed(recipe="imagenet32", batch_size=1_024, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return replace(base, labels="2%,5%,10%,20%,100%")


def imagenet224() -> Recipe:
    """ImageNet at 224x224, as in the paper, section 3.2: 32-pixel patches, batch 1,024.

    Command: ``fastselfie pretrain imagenet224 --data FOLDER`` with class folders in ``train/`` and ``val/``.
    """
    return imagenet32().changed(recipe="imagenet224", image_size=224, patch=32, crop="resized", pad=0)


def tiny() -> Recipe:
    """A quarter of the width and a few hundred steps, for any 32x32 source: minutes on a CPU.

    Command: ``fastselfie pretrain tiny --data synthetic``; ``fastselfie demo`` runs it.
    """
    base = cifar10().changed(
        recipe="tiny", width=0.25, batch_size=64, steps=200, log_every=10, evaluate_every=50, checkpoint_every=100,
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    return replace(base, pretrain=replace(base.pretrain, held_out=256))


RECIPES: dict[str, Callable[[], Recipe]] = {r.__name__: r for r in (cifar10, imagenet32, imagenet224, tiny)}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, cutoff=0.4)
        near = [recipe for recipe in near if recipe.startswith(name)] or near[:1]  # imagenet may be either
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(RECIPES)}"
        raise UserError(f"recipe {name}: there is none of that name; {hint}")
    return RECIPES[name]()
