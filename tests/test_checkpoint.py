"""Checkpoints on disk: what is kept, what is passed over, and what comes back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from fastselfie.errors import UserError
from fastselfie.models.convolution import Conv1x1
from fastselfie.pretext.task import Loss
from fastselfie.training import checkpoint
from fastselfie.training.checkpoint import Checkpoint
from fastselfie.training.metrics import Window
from fastselfie.training.optimizer import load_momentum, make_optimizer, momentum_of
from fastselfie.training.world import World
from tests.small_networks import pretrain_config


def state(step: int) -> Checkpoint:
    return Checkpoint(
        step=step, weights={"w": torch.full((2,), float(step))}, training={}, window={"count": 0, "sums": {}}
    )


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, state(step), keep=2)
    assert steps(tmp_path) == [3, 10]
    assert checkpoint.newest_whole(tmp_path, warn=pytest.fail) == 10
    assert checkpoint.load(tmp_path, 10).weights["w"].tolist() == [10, 10]


def test_a_damaged_newest_does_not_push_a_whole_one_out(tmp_path: Path) -> None:
    """After a fall-back from 16 to 8, the checkpoints of 8 and 12 are the two to keep."""
    for step in (8, 16):
        checkpoint.save(tmp_path, state(step), keep=2)
    (tmp_path / "step-000000016" / "state.json").write_text("null")
    warnings: list[str] = []
    assert checkpoint.newest_whole(tmp_path, warn=warnings.append) == 8
    assert len(warnings) == 1
    assert "step 16 is damaged" in warnings[0]
    assert "falling back to the one of step 8" in warnings[0]
    checkpoint.save(tmp_path, state(12), keep=2)
    assert steps(tmp_path) == [8, 12]


@pytest.mark.parametrize(
    "manifest", ["", "null", "7", "[]", '{"model.safetensors": "0"}', '{"gone.json": "0"}', "[" * 100_000]
)
def test_no_manifest_is_believed(manifest: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(5), keep=2)
    (tmp_path / "step-000000005" / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="step 5 is damaged"):
        checkpoint.newest_whole(tmp_path, warn=pytest.fail)


def test_weights_that_are_none_under_a_right_checksum(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(5), keep=2)
    folder = tmp_path / "step-000000005"
    (folder / "model.safetensors").write_bytes(b"none")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model.safetensors"] = hashlib.sha256(b"none").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="step 5 is damaged"):
        checkpoint.newest_whole(tmp_path, warn=pytest.fail)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
def test_a_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    """One in the weights would leave a file that reads well."""
    whole = Checkpoint(step=5, weights={"w": torch.ones(2)}, training={"t": torch.ones(2)}, window={"count": 12})
    checkpoint.save(tmp_path, whole, keep=2)
    path = tmp_path / "step-000000005" / name
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"step 5 is damaged .{name} does not match its checksum"):
        checkpoint.load(tmp_path, 5)


def test_a_step_saved_again_is_the_new_one(tmp_path: Path) -> None:
    """In a folder that was not there, of weights in any layout; what is no checkpoint's stays and counts for none."""
    folder = tmp_path / "run" / "checkpoints"
    weights = torch.arange(24.0).view(1, 2, 3, 4)
    for sign in (-1, 1):
        given = {"w": (sign * weights).contiguous(memory_format=torch.channels_last)}
        checkpoint.save(folder, Checkpoint(step=5, weights=given, training={}, window={}), keep=2)
        (folder / "step-5-copy").mkdir(exist_ok=True)
        (folder / ".step-000000006.partial").mkdir(exist_ok=True)
    assert checkpoint.saved_steps(folder) == [5]
    assert torch.equal(checkpoint.load(folder, 5).weights["w"], weights)
    checkpoint.remove_partial(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000005", "step-5-copy"]


def test_a_first_one_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step 5 .*; there is no earlier one"):
        checkpoint.save(tmp_path / "run" / "checkpoints", state(5), keep=2)


def test_none_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest_whole(tmp_path / "nothing", warn=pytest.fail) is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_comes_back(momentum: float) -> None:
    """Also where there is none to bring back."""
    networks = [Conv1x1(2, 3), Conv1x1(2, 3)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [make_optimizer(network, pretrain_config(momentum=momentum)) for network in networks]
    for step in range(3):
        for network, optimizer in zip(networks, optimizers, strict=True):
            network.weight.grad = torch.full_like(network.weight, 1.0 + step)
            optimizer.step()
        if step == 0:
            assert bool(momentum_of(networks[0], optimizers[0])) == (momentum > 0)
            optimizers[1] = make_optimizer(networks[1], pretrain_config(momentum=momentum))
            load_momentum(networks[1], optimizers[1], momentum_of(networks[0], optimizers[0]))
    assert networks[0].weight.equal(networks[1].weight)


def test_a_log_window_comes_back_to_the_bit() -> None:
    """Thirds of a step do not add up in binary: sums and counts are kept, not means."""
    world = World(device=torch.device("cpu"))
    unbroken, before, after = Window(world), Window(world), Window(world)
    values = [0.1, 0.7, 1.3, 0.2, 0.9]
    for index, value in enumerate(values):
        loss = Loss(value=torch.tensor(value), metrics={"accuracy": torch.tensor(value / 3)})
        unbroken.add(loss)
        (before if index < 2 else after).add(loss)
        if index == 1:
            after.load(json.loads(json.dumps(before.state())))
    assert after.take() == (means := unbroken.take())
    assert means["loss"] == pytest.approx(sum(values) / 5)
    assert means["accuracy"] == pytest.approx(sum(values) / 15)
