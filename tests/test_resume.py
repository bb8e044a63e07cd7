"""A run that was stopped, killed or damaged ends exactly as one that was left alone.

Log lines, checkpoints and evaluations fall on different steps, so that a checkpoint holds a half-finished log window.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import (
    SMALL,
    assert_equal_runs,
    assert_refused,
    checkpoint,
    checkpoints,
    contents,
    fastselfie,
    is_whole,
    metrics,
    stop_at,
    succeed,
)

STEPS = 40
COMMAND = (
    *("pretrain", *SMALL, "--held-out", "20", "--steps", str(STEPS)),
    *("--log-every", "7", "--checkpoint-every", "10", "--evaluate-every", "9"),
    *("--knn-every", "12", "--knn-images", "60"),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    succeed(*COMMAND, "--out", run, cwd=run.parent)
    return run


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its middle, with two checkpoints."""
    run = tmp_path_factory.mktemp("killed") / "run"
    ended = stop_at(21, signal.SIGKILL, *COMMAND, "--out", run, run=run)
    assert ended.returncode == -signal.SIGKILL
    assert not (run / "result.json").exists()
    return run


@pytest.fixture
def killed(killed_run: Path, tmp_path: Path) -> Path:
    """A copy of it to go on with."""
    return Path(shutil.copytree(killed_run, tmp_path / "run"))


def test_the_reference_run_logs_what_it_should(reference: Path) -> None:
    assert [line["step"] for line in metrics(reference)] == [7, 9, 12, 14, 18, 21, 24, 27, 28, 35, 36, 40]
    assert checkpoints(reference) == [30, 40]
    assert all(is_whole(checkpoint(reference, step)) for step in (30, 40))


@pytest.mark.parametrize("torn", ["", '{"step": 20, "los', '{"step": 22, "loss": 1.0}\n{"ste'])
def test_killed(torn: str, killed: Path, reference: Path) -> None:
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(torn)
    (killed / "checkpoints" / ".step-000000030.partial").mkdir(exist_ok=True)
    newest = checkpoints_of(killed)[-1]
    ended = succeed(*COMMAND, "--out", killed, cwd=killed.parent)
    assert f"going on from step {newest} of {STEPS}" in ended.stderr
    assert_equal_runs(killed, reference)
    assert checkpoints(killed) == [30, 40]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(number: signal.Signals, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = stop_at(14, number, *COMMAND, "--out", run, run=run)
    assert ended.returncode == 128 + number
    assert "Traceback" not in ended.stderr
    reached = checkpoints(run)[-1]
    assert f"stopped and saved at step {reached} of {STEPS}" in ended.stderr.splitlines()[-1]
    assert 14 <= reached < STEPS
    assert is_whole(checkpoint(run, reached))
    succeed(*COMMAND, "--out", run, cwd=tmp_path)
    assert_equal_runs(run, reference)


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "training.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, remove_manifest])
def test_damaged_newest_checkpoint(damage: Callable[[Path], None], killed: Path, reference: Path) -> None:
    before, newest = checkpoints_of(killed)
    damage(checkpoint(killed, newest))
    ended = succeed(*COMMAND, "--out", killed, cwd=killed.parent)
    said = [line for line in ended.stderr.splitlines() if " is damaged (" in line]
    assert len(said) == 1
    assert f"the checkpoint of step {newest} is damaged" in said[0]
    assert f"going on from step {before} of {STEPS}" in ended.stderr
    assert_equal_runs(killed, reference)


def test_every_checkpoint_damaged(killed: Path) -> None:
    for step in checkpoints_of(killed):
        flip_a_byte(checkpoint(killed, step))
    before = contents(killed)
    assert "and so is every other" in assert_refused(fastselfie(*COMMAND, "--out", killed, cwd=killed.parent))
    assert contents(killed) == before


def test_a_run_begun_with_another_order_of_images_is_not_gone_on_with(killed: Path) -> None:
    """Before runs said which, there was one."""
    record = json.loads((killed / "config.json").read_text())
    assert record["facts"].pop("stream") == 2
    (killed / "config.json").write_text(json.dumps(record))
    before = contents(killed)
    said = assert_refused(fastselfie(*COMMAND, "--out", killed, cwd=killed.parent))
    assert f"--out {killed}: was begun by a FastSelfie with another order of images (stream 1, now 2)" in said
    assert contents(killed) == before


def test_finished_run_is_left_alone(reference: Path, tmp_path: Path) -> None:
    """Also one that an earlier FastSelfie has made, with another order of images."""
    finished = Path(shutil.copytree(reference, tmp_path / "run"))
    record = json.loads((finished / "config.json").read_text())
    del record["facts"]["stream"]
    (finished / "config.json").write_text(json.dumps(record))
    before = contents(finished)
    ended = succeed(*COMMAND, "--out", finished, cwd=tmp_path)
    assert "already done" in ended.stderr.splitlines()[-1]
    assert contents(finished) == before


def test_may_go_on_with_other_micro_batches_and_checkpoints(killed: Path, reference: Path) -> None:
    change = ("--micro-batch-size", "8", "--checkpoint-every", "16", "--keep-checkpoints", "3")
    succeed(*COMMAND, *change, "--out", killed, cwd=killed.parent)
    assert checkpoints(killed)[-2:] == [32, 40]
    newest = checkpoints(killed)[0]
    expected = [line for line in metrics(reference) if line["step"] <= newest]
    assert expected
    assert metrics(killed)[: len(expected)] == expected
    assert [line["step"] for line in metrics(killed)] == [line["step"] for line in metrics(reference)]


def checkpoints_of(killed: Path) -> list[int]:
    """Steps of the two whole checkpoints of a killed run, which may also have left a half-written one."""
    names = (path.name.removeprefix("step-") for path in (killed / "checkpoints").glob("step-*"))
    steps = sorted(int(name) for name in names)[-2:]
    assert len(steps) == 2
    return steps
