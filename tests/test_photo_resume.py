"""A run on a folder of photographs that was killed ends exactly as one that was left alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.command import assert_equal_runs, metrics, newest_step, stop_at, succeed
from tests.photographs import flat_folder

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

NETWORK = ("--width", "0.0625", "--heads", "4", "--device", "cpu", "--precision", "fp32")
STEPS = 24
TINY = (
    *("pretrain", "tiny", *NETWORK, "--crop", "resized", "--batch-size", "8", "--steps", str(STEPS)),
    *("--log-every", "5", "--checkpoint-every", "6", "--evaluate-every", "7"),
)
LARGE = (
    *("pretrain", "imagenet224", *NETWORK, "--batch-size", "4", "--steps", "10"),
    *("--log-every", "1", "--checkpoint-every", "2", "--evaluate-every", "3"),
)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images without labels."""
    return flat_folder(tmp_path_factory.mktemp("data") / "flat", 60)


def test_a_resized_crop_of_small_files(flat: Path, tmp_path: Path) -> None:
    """Goes on as if nothing had been, and with other loader threads."""
    reference, run, command = tmp_path / "reference", tmp_path / "run", (*TINY, "--data", flat)
    succeed(*command, "--out", reference, cwd=tmp_path)
    ended = stop_at(9, signal.SIGKILL, *command, "--out", run, run=run)
    assert ended.returncode == -signal.SIGKILL
    assert 9 <= newest_step(run) < STEPS
    ended = succeed(*command, "--loader-threads", "3", "--prefetch", "5", "--out", run, cwd=tmp_path)
    assert f" of {STEPS}" in ended.stderr
    assert "going on from step" in ended.stderr
    assert_equal_runs(run, reference)


def test_seven_by_seven_patches(flat: Path, tmp_path: Path) -> None:
    """The recipe for ImageNet, killed and resumed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed(*LARGE, "--data", flat, "--out", whole, cwd=tmp_path)
    settings = json.loads((whole / "config.json").read_text())["settings"]
    assert (settings["image_size"], settings["patch"], settings["crop"]) == (224, 32, "resized")
    assert [line["step"] for line in metrics(whole)] == list(range(1, 11))
    stop_at(3, signal.SIGKILL, *LARGE, "--data", flat, "--out", killed, run=killed)
    assert 3 <= newest_step(killed) < 10
    ended = succeed(*LARGE, "--data", flat, "--out", killed, cwd=tmp_path)
    assert "going on from step" in ended.stderr
    assert_equal_runs(killed, whole)
