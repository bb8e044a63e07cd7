"""Which pooler a finetuned network has: the run's, another one, none; and runs older than the settings that say so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastselfie.arguments import parse_finetune, parse_pretrain
from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.errors import UserError
from fastselfie.evaluation.finetune import finetune
from fastselfie.evaluation.pretrained import read_pretrained
from fastselfie.models.selfie import Selfie
from fastselfie.training.pretrain import pretrain
from fastselfie.training.run_folder import RunFolder
from tests.command import SMALL, checkpoint
from tests.run_folders import write_run

ATTENTION = ("--encoder", "resnet36-attention")
YOUNG = ("pooler_depth", "masks", "position_std", "pooler_weights", "trunk_input")
"""Settings that runs of earlier versions have not. Of finetuning ``pooler`` too."""


def pretrained(folder: Path, **settings: Any) -> Path:
    """A finished pretraining run that was never trained."""
    shape: dict[str, Any] = {"width": 1 / 16, "heads": 4, **settings}
    run = write_run(folder / "run", "pretrain", [{"step": 1, "loss": 1.0}], {"step": 1}, **shape)
    torch.manual_seed(0)
    weights = Selfie(PretrainConfig(recipe="tiny", **shape)).state_dict()
    safetensors.torch.save_file(weights, run / "encoder.safetensors")
    return run


def edit(run: Path, without: tuple[str, ...]) -> None:
    """Take settings out of a run's config.json."""
    record = json.loads((run / "config.json").read_text())
    assert set(without) & set(record["settings"])
    record["settings"] = {name: value for name, value in record["settings"].items() if name not in without}
    (run / "config.json").write_text(json.dumps(record))


def words(run: Path, *more: str) -> list[str]:
    return ["tiny", "--from", str(run), *more]


@pytest.mark.parametrize(
    "settings", [{}, {"pooler": "mean"}, {"pooler": "max", "positions": "query"}, {"pooler_depth": 1}]
)
def test_the_runs_pooler_is_taken(settings: dict[str, Any], tmp_path: Path) -> None:
    run = pretrained(tmp_path, **settings)
    config = parse_finetune(words(run, *ATTENTION))
    expected = {"pooler": "attention", "pooler_depth": 3, "positions": "both"} | settings
    assert {name: getattr(config, name) for name in expected} == expected
    read_pretrained(config, run)
    plain = parse_finetune(words(run))  # has no pooler, so runs of either kind compare
    assert (plain.encoder, plain.pooler, plain.pooler_depth) == ("resnet50", "attention", 3)
    read_pretrained(plain, run)


@pytest.mark.parametrize(
    ("settings", "flag", "other"),
    [({}, "--pooler", "mean"), ({}, "--pooler-depth", "2"), ({"pooler": "max"}, "--pooler", "attention")],
)
def test_another_pooler_needs_fresh_weights(settings: dict[str, Any], flag: str, other: str, tmp_path: Path) -> None:
    run = pretrained(tmp_path, **settings)
    with pytest.raises(UserError, match=rf"{flag} {other}: .* was pretrained with {flag} "):
        read_pretrained(parse_finetune(words(run, *ATTENTION, flag, other)), run)
    read_pretrained(parse_finetune(words(run, *ATTENTION, flag, other, "--pooler-weights", "fresh")), run)


@pytest.mark.parametrize(
    ("settings", "told"), [({"pooler": "none"}, "--pooler none"), ({"pooler_depth": 0}, "--pooler-depth 0")]
)
def test_a_control_has_no_pooler_to_give(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    run = pretrained(tmp_path, **settings)
    with pytest.raises(UserError, match=rf"pretrained with {told}, .*--pooler-weights fresh"):
        read_pretrained(parse_finetune(words(run, *ATTENTION)), run)
    config = parse_finetune(words(run, *ATTENTION, "--pooler-weights", "fresh"))
    assert (config.pooler, config.pooler_depth) == ("attention", 3)
    read_pretrained(config, run)
    read_pretrained(parse_finetune(words(run)), run)


def test_an_encoder_that_there_is_none_of(tmp_path: Path) -> None:
    run = pretrained(tmp_path, pooler="mean")
    with pytest.raises(UserError, match="--encoder resnet18: must be one of"):
        parse_finetune(words(run, "--encoder", "resnet18"))


def test_scratch_may_ask_for_any() -> None:
    config = parse_finetune(["tiny", "--scratch", *ATTENTION, "--pooler", "max", "--trunk-input", "patches"])
    assert (config.pooler, config.trunk_input, config.pooler_weights) == ("max", "patches", "pretrained")
    assert parse_finetune(["tiny", "--scratch", *ATTENTION, "--pooler-depth", "4"]).pooler_depth == 4
    with pytest.raises(UserError, match="--pooler none: must be one of"):
        parse_finetune(["tiny", "--scratch", *ATTENTION, "--pooler", "none"])


def test_a_run_from_before_the_settings_is_finetuned(tmp_path: Path) -> None:
    run = pretrained(tmp_path)
    edit(run, YOUNG)
    config = parse_finetune(words(run, *ATTENTION))
    assert (config.pooler, config.pooler_depth) == ("attention", 3)
    read_pretrained(config, run)
    with pytest.raises(UserError, match=r"--pooler-depth 1: .* was pretrained with --pooler-depth 3"):
        read_pretrained(parse_finetune(words(run, *ATTENTION, "--pooler-depth", "1")), run)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_folder_from_before_the_settings_is_gone_on_with(command: str, tmp_path: Path) -> None:
    old: PretrainConfig | FinetuneConfig
    other: dict[str, Any]
    if command == "pretrain":
        old, other = PretrainConfig(recipe="tiny"), {"masks": "batch"}
    else:
        old = FinetuneConfig(recipe="tiny", scratch=True, encoder="resnet36-attention", positions="both")
        other = {"pooler": "mean"}
    folder = RunFolder(tmp_path / "run")
    folder.claim(old, command, {"images": "0123"})
    edit(folder.path, YOUNG if command == "pretrain" else (*YOUNG, "pooler"))
    folder.claim(old, command, {"images": "0123"})
    (name, value), was = *other.items(), getattr(old, next(iter(other)))
    with pytest.raises(UserError, match=rf"holds a run with --{name} {was}, not {value}"):
        folder.claim(dataclasses.replace(old, **other), command, {"images": "0123"})


def test_an_old_run_goes_on_and_is_finetuned(tmp_path: Path) -> None:
    """For real: from a checkpoint to the weights of the unbroken run, and then patch by patch with a fresh pooler."""
    length = ("--steps", "4", "--checkpoint-every", "2", "--held-out", "20", "--compile", "off")
    unbroken = pretrain(parse_pretrain([*SMALL, *length, "--out", str(tmp_path / "unbroken")]))
    old = tmp_path / "old"
    shutil.copytree(unbroken, old)
    shutil.rmtree(checkpoint(old, 4))
    (old / "result.json").unlink()
    (old / "encoder.safetensors").unlink()
    edit(old, YOUNG)
    pretrain(parse_pretrain([*SMALL, *length, "--out", str(old)]))
    assert (old / "encoder.safetensors").read_bytes() == (unbroken / "encoder.safetensors").read_bytes()
    more = ("--from", str(old), *ATTENTION, "--trunk-input", "patches", "--pooler-weights", "fresh", "--pooler", "mean")
    tuned = finetune(parse_finetune([*SMALL, *more, "--steps", "2", "--out", str(tmp_path / "tuned")]))
    settings = json.loads((tuned / "config.json").read_text())["settings"]
    told = {"pooler": "mean", "pooler_weights": "fresh", "trunk_input": "patches", "pooler_depth": 3}
    assert told.items() <= settings.items()
    assert 0 <= json.loads((tuned / "result.json").read_text())["test_accuracy"] <= 1
