"""Settings that make no sense are refused by their flag's name; recipes hold the paper's numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fastselfie.config import FinetuneConfig, PretrainConfig, contrast, label_share
from fastselfie.errors import UserError
from fastselfie.evaluation.probe_config import ProbeConfig
from fastselfie.recipes import RECIPES, recipe

NAN, INFINITY = float("nan"), float("inf")
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *[("--steps", {"steps": value}) for value in (0, -1)],
    *[("--batch-size", {"batch_size": value}) for value in (0, -512)],
    *[("--micro-batch-size", {"batch_size": 512, "micro_batch_size": value}) for value in (0, -4, 100, 1024)],
    *[("--lr", {"lr": value}) for value in (NAN, 0.0, -0.1, INFINITY)],
    *[("--momentum", {"momentum": value}) for value in (NAN, -0.1, 1.0)],
    *[("--weight-decay", {"weight_decay": value}) for value in (NAN, -1e-4, INFINITY)],
    *[("--seed", {"seed": value}) for value in (-1, 2**63)],
    *[("--pad", {"pad": value}) for value in (-1, 32)],
    *[("--mean", {"mean": (0.5, value, 0.5)}) for value in (NAN, -0.1, 128.0)],
    *[("--std", {"std": (0.25, 0.25, value)}) for value in (NAN, 0.0, -0.2, 64.0)],
    *[("--min-area", {"min_area": value}) for value in (NAN, 0.0, -0.5, 1.5)],
    *[("--loader-threads", {"loader_threads": value}) for value in (0, 1025)],
    *[("--hardware-share", {"hardware_share": value}) for value in (NAN, -0.5, 1.5)],
    ("--hardware-share", {"hardware_share": 0.5, "deterministic": True}),
    *[("--max-bad-share", {"max_bad_share": value}) for value in (NAN, -0.5, 1.5)],
    *[("--prefetch", {"prefetch": value}) for value in (0, 65)],
    *[(f"--{name}", {name: Path("s3://bucket/run")}) for name in ("out", "index")],
    *[("--checkpoint-every", {"checkpoint_every": value}) for value in (0, -1)],
    *[("--log-every", {"log_every": value}) for value in (0, -1)],
    *[("--evaluate-every", {"evaluate_every": value}) for value in (0, -1)],
    *[("--keep-checkpoints", {"keep_checkpoints": value}) for value in (1, 0, -1)],
    *[("--patch", {"patch": value}) for value in (0, -8, 2)],
    *[("--image-size", {"image_size": value}) for value in (0, -32, 8, 33)],
    # 0.3: 19.2 channels; 3/64: 48 features do not divide into 32 heads.
    *[("--width", {"width": value}) for value in (NAN, 0.0, -1.0, 0.3, 3 / 64, 17.0, INFINITY)],
    *[("--heads", {"heads": value}) for value in (0, -1, 33)],
    *[("--dropout", {"dropout": value}) for value in (NAN, -0.1, 1.0)],
]
REFUSED_IN_PRETRAINING: list[tuple[str, dict[str, Any]]] = [
    # 0.95 of 16 patches leaves one masked, 0.01 shows none.
    *[("--keep", {"keep": value}) for value in (NAN, 0.0, 1.0, -0.5, 1.5, 0.95, 0.01)],
    *[("--held-out", {"held_out": value}) for value in (1, -5)],
    *[("--pooler-depth", {"pooler_depth": value}) for value in (-1, 5)],
    *[("--pooler-depth", {"pooler": pooler, "pooler_depth": 2}) for pooler in ("mean", "max", "none")],
    *[("--position-std", {"position_std": value}) for value in (NAN, 0.0, -1.0, INFINITY)],
    *[("--knn-every", settings) for settings in ({"knn_every": -1}, {"knn_every": 5, "held_out": 0})],
    *[("--knn-images", {"knn_images": value}) for value in (0, -1)],
]
REFUSED_IN_PROBING: list[tuple[str, dict[str, Any]]] = [
    *[("--labels", {"labels": value}) for value in ("0%", "8")],
    *[("--label-seed", {"label_seed": value}) for value in (-1, 2**63)],
    *[("--checkpoint", {"checkpoint": value}) for value in (0, -1)],
    *[("--neighbours", {"neighbours": value}) for value in (0, -1)],
    *[("--temperature", {"temperature": value}) for value in (NAN, INFINITY, 0.0, -0.07)],
    *[("--batch-size", {"batch_size": value}) for value in (0, -1)],
    ("--no-linear", {"linear": False, "knn": False}),
]
REFUSED_IN_FINETUNING: list[tuple[str, dict[str, Any]]] = [
    *[("--labels", {"labels": value}) for value in ("0%", "0.0%", "120%", "abc", "", "8", "-8%", "nan%", "8%%")],
    *[("--label-seed", {"label_seed": value}) for value in (-1, 2**63)],
    ("--scratch", {"scratch": True, "pretrained": Path("run")}),
    *[("--pooler-depth", {"encoder": "resnet36-attention", "pooler_depth": value}) for value in (-1, 0, 5)],
    ("--pooler-depth", {"encoder": "resnet36-attention", "pooler": "max", "pooler_depth": 1}),
    ("--pooler", {"pooler": "mean"}),
    ("--pooler-depth", {"pooler_depth": 1}),
    ("--pooler-weights", {"pooler_weights": "fresh", "pretrained": Path("run")}),
    ("--pooler-weights", {"encoder": "resnet36-attention", "pooler_weights": "fresh", "scratch": True}),
]


def refusal(kind: type[Any], settings: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        kind(recipe="test", **settings)
    return str(caught.value)


def starts_with_flag(message: str, flag: str) -> bool:
    """The flag itself, not one that it is the beginning of; and all in one line."""
    return message.split()[0].rstrip(":") == flag and "\n" not in message


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize(("flag", "settings"), REFUSED)
def test_nonsense_is_refused_by_name(kind: type[Any], flag: str, settings: dict[str, Any]) -> None:
    message = refusal(kind, settings)
    if flag == "--heads":  # either of the two can be mended
        assert flag in message
    else:
        assert starts_with_flag(message, flag), message


@pytest.mark.parametrize(("flag", "settings"), REFUSED_IN_PRETRAINING)
def test_nonsense_is_refused_in_pretraining(flag: str, settings: dict[str, Any]) -> None:
    assert starts_with_flag(refusal(PretrainConfig, settings), flag)


@pytest.mark.parametrize(
    "settings",
    [
        *({"pooler_depth": value} for value in (0, 4)), *({"held_out": value} for value in (0, 2)), {"knn_images": 1},
        {"knn_every": 1}, {"keep": 1 / 16}, {"keep": 14 / 16}, {"min_area": 1.0}, {"prefetch": 1}, {"prefetch": 64},
        {"hardware_share": 0.5}, {"hardware_share": 0.0, "deterministic": True}, {"keep_checkpoints": 2},
    ],
)  # fmt: skip
def test_the_ends_of_what_makes_sense(settings: dict[str, Any]) -> None:
    config = PretrainConfig(recipe="test", **settings)
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize(("flag", "settings"), REFUSED_IN_FINETUNING)
def test_nonsense_is_refused_in_finetuning(flag: str, settings: dict[str, Any]) -> None:
    assert starts_with_flag(refusal(FinetuneConfig, settings), flag)


@pytest.mark.parametrize(("flag", "settings"), REFUSED_IN_PROBING)
def test_nonsense_is_refused_in_probing(flag: str, settings: dict[str, Any]) -> None:
    assert starts_with_flag(refusal(ProbeConfig, settings), flag)


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("--labels a\nb:\twrite  a percentage")) == "--labels a b: write a percentage"


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 0.5}, {"width": 1 / 64, "heads": 4}, {"width": 4.0}, {"pad": 31}, {"pad": 0}, {"seed": 2**63 - 1},
        {"micro_batch_size": 512}, {"micro_batch_size": 1}, {"weight_decay": 0.0}, {"momentum": 0.0}, {"dropout": 0.0},
        {"steps": 1}, {"image_size": 12, "patch": 4, "pad": 11}, {"mean": (0.0, 1.0, 0.5)},
    ],
)  # fmt: skip
def test_the_last_sensible_values_are_taken(settings: dict[str, Any]) -> None:
    for kind in (PretrainConfig, FinetuneConfig):
        config = kind(recipe="test", **settings)
        assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("text", "share"), [("8%", 0.08), ("100%", 1), (" 5% ", 0.05), ("0.5%", 0.005), ("12.5%", 0.125)]
)
def test_label_shares(text: str, share: float) -> None:
    assert label_share(text) == pytest.approx(share, rel=1e-12)
    assert FinetuneConfig(recipe="test", labels=text).labels == text


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PretrainConfig(recipe="test").steps = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["cifar10", "imagenet32", "imagenet224"])
def test_recipes_hold_the_papers_settings(name: str) -> None:
    """Section 3.2."""
    for config in (recipe(name).pretrain, recipe(name).finetune):
        assert config.recipe == name
        assert config.steps == 120_000
        assert config.batch_size == (512 if name == "cifar10" else 1024)
        assert config.momentum == 0.9
        assert config.weight_decay == 0.0001
        assert config.lr in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
        assert (config.heads, config.intermediate, config.features, config.dropout) == (32, 640, 1024, 0.1)
        assert config.stage_channels == (64, 128, 256, 512)
        assert (config.image_size, config.patch) == ((224, 32) if name == "imagenet224" else (32, 8))
        assert (config.grid, config.patches) == ((7, 49) if name == "imagenet224" else (4, 16))
        assert (config.pad, config.pad_mode) == ((0, "zero") if name == "imagenet224" else (4, "zero"))
    assert recipe(name).pretrain.keep in (0.75, 0.5)


@pytest.mark.parametrize(
    ("name", "keep", "visible", "masked"),
    [("cifar10", 0.75, 12, 4), ("cifar10", 0.5, 8, 8), ("imagenet224", 0.75, 37, 12), ("imagenet224", 0.5, 25, 24)],
)
def test_visible_and_masked_patches(name: str, keep: float, visible: int, masked: int) -> None:
    config = dataclasses.replace(recipe(name).pretrain, keep=keep)
    assert (config.visible, config.patches - config.visible) == (visible, masked)


def test_widths_scale_every_channel_count() -> None:
    config = PretrainConfig(recipe="test", width=0.25)
    assert config.stage_channels == (16, 32, 64, 128)
    assert (config.features, config.intermediate) == (256, 160)


def test_every_recipe_builds_under_its_name() -> None:
    assert set(RECIPES) == {"cifar10", "imagenet32", "imagenet224", "tiny"}
    for name in RECIPES:
        assert recipe(name).pretrain.recipe == recipe(name).finetune.recipe == name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cifar-10", "cifar10"),
        ("imagenet-224", "imagenet224"),
        ("imagenet_32", "imagenet32"),
        ("tny", "tiny"),
        ("imagenet", "imagenet32 or imagenet224"),
    ],
)
def test_an_unknown_recipe_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"{name}.*did you mean {nearest}\?"):
        recipe(name)


def test_a_recipe_like_none_lists_them_all() -> None:
    with pytest.raises(UserError) as caught:
        recipe("zzz")
    assert all(name in str(caught.value) for name in RECIPES)


def test_neighbours_that_are_not_asked() -> None:
    for name, value in (("neighbours", 5), ("temperature", 0.1)):
        changed: dict[str, Any] = {name: value}
        ProbeConfig(recipe="cifar10", **changed)
        with pytest.raises(UserError, match=f"--{name} {value}: has no effect, --no-knn has no neighbours"):
            ProbeConfig(recipe="cifar10", knn=False, **changed)


def test_a_contrast_is_in_the_words_of_the_command_line() -> None:
    assert contrast("--lr", 0.1, 0.2) == "--lr 0.1, not 0.2"
    assert contrast("--tune", False, True) == "--no-tune, not --tune"
    assert contrast("--finetune.sync-bn", True, False) == "--finetune.sync-bn, not --finetune.no-sync-bn"
