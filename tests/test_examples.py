"""The examples run as they stand. `examples.resnetv2` is tested with what it reads, in `tests.test_export`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch

from examples.plain_training import Network, train
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.scene_files import write_scenes
from tests.command import run_module
from tests.small_networks import pretrain_config, question, randomise

ROOT = Path(__file__).parents[1]
FEW = {"steps": 60, "batch": 16, "size": 32, "patch": 8, "width": 0.0625, "lr": 0.1, "seed": 0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rendered scenes as JPEG files."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, size=48, train=20, test=10, seed=0, progress=lambda done: None)
    return folder


def test_the_plain_network_is_ours() -> None:
    """Its weights are `Selfie`'s by name, and with the same ones it puts the same question with the same loss."""
    config = pretrain_config(heads=32, dropout=0.0)
    ours, plain = Selfie(config).double(), Network(config).double()
    randomise(ours)
    plain.load_state_dict(ours.state_dict(), strict=True)
    patches, places_BN = question(config, images=6)
    loss, right = ours(patches, places_BN)
    plain_loss, plain_right = plain(patches, places_BN)
    torch.testing.assert_close(plain_loss, loss, rtol=1e-5, atol=0)
    assert plain_right == right
    loss.backward()
    plain_loss.backward()
    for (name, theirs), parameter in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert theirs.grad is not None
        assert parameter.grad is not None
        torch.testing.assert_close(theirs.grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_plain_loop_learns(scenes: Path) -> None:
    losses = [loss.item() for loss in train(argparse.Namespace(data=str(scenes), **FEW))]
    assert len(losses) == 60
    assert sum(losses[-10:]) / 10 < 1.32  # chance is ln 4 = 1.386; three seeds gave 1.22 to 1.26


def test_the_plain_loop_as_a_command(scenes: Path) -> None:
    words = [word for name, value in (FEW | {"steps": 2}).items() for word in (f"--{name}", str(value))]
    ended = run_module("examples.plain_training", scenes, *words, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    printed = [line.split() for line in ended.stdout.splitlines()]
    assert [step for step, _ in printed] == ["1", "2"]
    # Chance is ln 4, one of four masked patches; fresh weights are near it.
    assert float(printed[0][1]) == pytest.approx(1.386, abs=0.3)


def test_they_are_short() -> None:
    loop, network = ((ROOT / "examples" / name).read_text() for name in ("plain_training.py", "resnetv2.py"))
    assert len(loop.splitlines()) < 70
    assert len(network.splitlines()) <= 80
    assert not re.search(r"^(from|import) fastselfie", network, flags=re.MULTILINE)
