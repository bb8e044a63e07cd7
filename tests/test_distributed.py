"""Two gloo processes do what one process does with two micro-batches, to the bit; stopped, they save and go on."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.command import (
    SMALL,
    assert_equal_runs,
    checkpoint,
    checkpoints,
    is_whole,
    metrics,
    stop_at,
    succeed,
    torchrun,
)

STEPS = 24
LENGTH = ("--steps", str(STEPS), "--log-every", "5", "--checkpoint-every", "9", "--evaluate-every", "7")
PRETRAIN = ("pretrain", *SMALL, "--held-out", "20", "--knn-every", "4", "--knn-images", "60", *LENGTH)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with two micro-batches."""
    run = tmp_path_factory.mktemp("one") / "run"
    succeed(*PRETRAIN, "--micro-batch-size", "8", "--out", run, cwd=run.parent)
    return run


def test_pretraining(one_process: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = succeed(*PRETRAIN, "--out", run, cwd=tmp_path, processes=2)
    assert_equal_runs(run, one_process)
    assert_done_once(ended)


def assert_done_once(ended: subprocess.CompletedProcess[str]) -> None:
    """Not by each process."""
    said = [line for line in ended.stderr.splitlines() if line.endswith(f"done, {STEPS} steps")]
    assert len(said) == 1, ended.stderr


def test_finetuning(one_process: Path, tmp_path: Path) -> None:
    command = ("finetune", *SMALL, "--encoder", "resnet36-attention", "--from", one_process, "--labels", "50%")
    one, two = tmp_path / "one", tmp_path / "two"
    succeed(*command, "--steps", "10", "--log-every", "3", "--micro-batch-size", "8", "--out", one, cwd=tmp_path)
    succeed(*command, "--steps", "10", "--log-every", "3", "--out", two, cwd=tmp_path, processes=2)
    assert_equal_runs(two, one)


def test_processes_with_micro_batches_see_the_same_data(tmp_path: Path) -> None:
    """Gradients add up in another order, so equal to rounding, which small steps keep small."""
    command = ("pretrain", *SMALL, "--steps", "4", "--lr", "0.0001", "--log-every", "1", "--micro-batch-size", "4")
    one, two = tmp_path / "one", tmp_path / "two"
    succeed(*command, "--out", one, cwd=tmp_path)
    succeed(*command, "--out", two, cwd=tmp_path, processes=2)
    assert len(metrics(one)) == 4
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_synchronised_norms_see_the_whole_batch(tmp_path: Path) -> None:
    """Two processes are one with the whole batch, to rounding; without, batch norm sees halves of it.

    Rounding grows from step to step, and in some networks fast: torch 2.11's of seed 0 is one.
    """
    short = ("--steps", "3", "--log-every", "1", "--lr", "0.0001", "--seed", "1")
    command = ("pretrain", *SMALL, *short, "--dropout", "0")
    whole, together, apart = (tmp_path / name for name in ("whole", "together", "apart"))
    succeed(*command, "--out", whole, cwd=tmp_path)
    succeed(*command, "--sync-bn", "--out", together, cwd=tmp_path, processes=2)
    succeed(*command, "--out", apart, cwd=tmp_path, processes=2)
    losses = [[line["loss"] for line in metrics(run)] for run in (whole, together, apart)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)
    assert losses[2] != pytest.approx(losses[0], abs=2e-4)


def test_four_processes_go_on_to_the_bit(tmp_path: Path) -> None:
    """From three on, gradients add up in an order that depends on DDP's layout, which its first pass changes."""
    command = ("pretrain", *SMALL, "--steps", "6", "--log-every", "1", "--checkpoint-every", "3", "--held-out", "20")
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    succeed(*command, "--out", unbroken, cwd=tmp_path, processes=4)
    shutil.copytree(unbroken, resumed)
    shutil.rmtree(checkpoint(resumed, 6))
    (resumed / "result.json").unlink()
    ended = succeed(*command, "--out", resumed, cwd=tmp_path, processes=4)
    assert "going on from step 3 of 6" in ended.stderr
    assert_equal_runs(resumed, unbroken)


def test_stopped_under_torchrun(one_process: Path, tmp_path: Path) -> None:
    """Started by it, stopped and gone on with: the same run."""
    run = tmp_path / "run"
    ended = stop_at(10, signal.SIGTERM, *PRETRAIN, "--out", run, run=run, program=torchrun(2))
    assert ended.returncode != 0
    reached = checkpoints(run)[-1]
    assert 10 <= reached < STEPS
    assert is_whole(checkpoint(run, reached))
    assert f"stopped and saved at step {reached} of {STEPS}" in ended.stderr
    assert_done_once(succeed(*PRETRAIN, "--out", run, cwd=tmp_path, program=torchrun(2)))
    assert_equal_runs(run, one_process)
