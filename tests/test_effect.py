"""Options that would do nothing beside the others: refused where a user names them, and not where a recipe does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.arguments import parse_finetune, parse_pretrain
from fastselfie.config import FinetuneConfig, PretrainConfig, idle, label_share
from fastselfie.errors import UserError
from fastselfie.evaluation.subsets import held_back, labelled_subset
from fastselfie.models.encoders import encoder
from fastselfie.models.selfie import Selfie
from fastselfie.recipes import RECIPES, recipe
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.session import seeded

ATTENTION = "--encoder resnet36-attention"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cifar10 --min-area 0.3", "--min-area 0.3: has no effect, --crop pad takes whole images"),
        ("cifar10 --region-decoding off", "--region-decoding off: has no effect, --crop pad takes whole images"),
        ("imagenet224 --pad 4", "--pad 4: has no effect, --crop resized pads nothing"),
        ("imagenet224 --pad-mode reflect", "--pad-mode reflect: has no effect, --crop resized pads nothing"),
        ("cifar10 --crop resized --pad 2", "--pad 2: has no effect, --crop resized pads nothing"),
        ("cifar10 --pad 0 --pad-mode reflect", "--pad-mode reflect: has no effect, --pad 0 pads nothing"),
        ("cifar10 --knn-images 9", "--knn-images 9: has no effect, without --knn-every there are no neighbours"),
        ("tiny --held-out 0 --evaluate-every 7", "--evaluate-every 7: has no effect, --held-out 0 leaves nothing"),
        ("tiny --pooler mean --dropout 0.3", "--dropout 0.3: has no effect, --pooler mean has no attention"),
        ("tiny --pooler-depth 0 --dropout 0.3", "--dropout 0.3: has no effect, --pooler-depth 0 has no attention"),
        ("tiny --pooler-depth 0 --positions query", "--positions query: has no effect, with --pooler-depth 0 nothing"),
        ("tiny --pooler none --positions query", "--positions query: has no effect, with --pooler none nothing reads"),
    ],
)
def test_settings_without_effect(words: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_pretrain(words.split())
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--dropout 0.3", "--dropout 0.3: has no effect, --encoder resnet50 has no attention; leave it out or take"),
        ("--positions query", "--positions query: has no effect, --encoder resnet50 has none"),
        ("--positions both", "--positions both: has no effect, --encoder resnet50 has none"),
        (f"{ATTENTION} --pooler max --dropout 0.3", "--dropout 0.3: has no effect, --pooler max has no attention"),
        ("--label-seed 3", "--label-seed 3: has no effect, every label is learned from; leave it out or take fewer"),
        ("--labels 100.0% --label-seed 3", "--label-seed 3: has no effect, every label is learned from"),
    ],
)
def test_settings_without_effect_on_finetuning(words: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_finetune(["tiny", "--scratch", *words.split()])
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "words",
    [
        f"{ATTENTION} --dropout 0.3 --heads 8 --positions query", f"{ATTENTION} --pooler mean --positions query",
        "--labels 8% --label-seed 3", "--label-seed 3 --hold-back 0.1", "--width 0.0625 --heads 4",
    ],
)  # fmt: skip
def test_settings_with_an_effect_on_finetuning(words: str) -> None:
    parse_finetune(["tiny", "--scratch", *words.split()])


POOLERS: dict[str, dict[str, Any]] = {
    "attention": {}, "mean": {"pooler": "mean"}, "none": {"pooler": "none"}, "depth 0": {"pooler_depth": 0}
}  # fmt: skip


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize(("name", "value"), [("dropout", 0.5), ("positions", "query"), ("logit_scale", "none")])
def test_what_is_called_idle_changes_no_bit_of_pretraining(name: str, value: Any, pooler: str) -> None:
    """And what is not called so does. A step's loss and the gradients of the pooler's and the trunk's weights."""
    config = dataclasses.replace(recipe("tiny").pretrain, width=0.0625, **POOLERS[pooler])
    other = dataclasses.replace(config, **{name: value})
    assert (pretraining_step(config) == pretraining_step(other)) == (name in idle(other))


def pretraining_step(config: PretrainConfig) -> list[float]:
    network = seeded(lambda: Selfie(config), 0)
    patches = torch.randn(4 * config.patches, 3, config.patch, config.patch, generator=torch.Generator().manual_seed(1))
    places_BN = torch.stack([torch.randperm(config.patches) for _ in range(4)])
    return step(network, lambda: network(patches, places_BN)[0])


@pytest.mark.parametrize("encoder_of", ["resnet50", "resnet36-attention", "resnet36-attention, mean"])
@pytest.mark.parametrize(("name", "value"), [("dropout", 0.5), ("positions", "query"), ("width", 0.125)])
def test_what_is_called_idle_changes_no_bit_of_finetuning(name: str, value: Any, encoder_of: str) -> None:
    kind, _, pooler = encoder_of.partition(", ")
    changes: dict[str, Any] = {"encoder": kind, "width": 0.0625, "pooler": pooler or "attention"}
    config = dataclasses.replace(recipe("tiny").finetune, scratch=True, **changes)
    other = dataclasses.replace(config, **{name: value})
    assert (finetuning_step(config) == finetuning_step(other)) == (name in idle(other))


def finetuning_step(config: FinetuneConfig) -> list[float]:
    network = seeded(lambda: encoder(config, 10), 0)
    images = torch.randn(4, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1))
    return step(network, lambda: F.cross_entropy(network(images), torch.arange(4)))


def step(network: torch.nn.Module, loss: Callable[[], Tensor]) -> list[float]:
    """A step's loss and the size of each gradient that there is."""
    torch.manual_seed(2)
    torch.use_deterministic_algorithms(True)
    value = loss()
    value.backward()
    torch.use_deterministic_algorithms(False)
    return [value.item(), *(p.grad.norm().item() for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("share", "hold_back"), [("100%", 0.0), ("50%", 0.0), ("100%", 0.5)])
def test_a_label_seed_decides_something_where_labels_are_left_out(share: str, hold_back: float) -> None:
    labels_S = torch.arange(40) % 4
    rows = []
    for seed in (1, 2):
        taken = labelled_subset(labels_S, label_share(share), seed)
        rows.append((held_back(labels_S, taken, hold_back, seed)[0] if hold_back else taken).tolist())
    config = FinetuneConfig(recipe="tiny", labels=share, hold_back=hold_back, label_seed=1)
    assert (rows[0] == rows[1]) == ("label_seed" in idle(config))


def test_a_run_goes_on_whatever_its_idle_settings_were(tmp_path: Path) -> None:
    """One that was begun before they were refused."""
    old = FinetuneConfig(recipe="tiny", scratch=True, dropout=0.3, label_seed=4)
    folder = RunFolder(tmp_path / "run")
    folder.claim(old, "finetune", {})
    folder.claim(dataclasses.replace(old, dropout=0.1, label_seed=0), "finetune", {})
    for other, said in (({"weight_decay": 0.2}, "--weight-decay"), ({"encoder": "resnet36-attention"}, "--encoder")):
        changes: dict[str, Any] = other
        with pytest.raises(UserError, match=f"holds a run with {said} "):
            folder.claim(dataclasses.replace(old, **changes), "finetune", {})


@pytest.mark.parametrize(
    "words",
    [
        "imagenet224", "cifar10", "cifar10 --crop resized --min-area 0.3", "imagenet224 --crop pad --pad-mode zero",
        "imagenet224 --crop pad --pad 8 --pad-mode reflect", "cifar10 --pad 0", "cifar10 --knn-images 9 --knn-every 5",
        *(f"{name} --held-out 0" for name in RECIPES), "tiny --held-out 9 --evaluate-every 7",
    ],
)  # fmt: skip
def test_what_a_recipe_has_itself_is_not_held_against_the_user(words: str) -> None:
    parse_pretrain(words.split())
    if "knn" not in words and "held-out" not in words:
        parse_finetune(words.split())
