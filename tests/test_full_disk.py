"""A disk that is full ends a run in one line; what was saved before is whole, and with room the run goes on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import (
    SMALL,
    assert_refused,
    checkpoint,
    checkpoints,
    fastselfie,
    is_whole,
    newest_step,
    stop_at,
    succeed,
)

COMMAND = ("pretrain", *SMALL, "--held-out", "10", "--steps", "24", "--log-every", "2", "--evaluate-every", "100")
LIMIT_BYTES = 200_000
"""Less than the weights, more than every other file of these runs."""


def no_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))


def test_checkpoint_larger_than_allowed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = (*COMMAND, "--checkpoint-every", "4", "--out", run)
    stop_at(4, signal.SIGTERM, *command, run=run)
    saved = checkpoints(run)
    ended = fastselfie(*command, cwd=tmp_path, before=no_large_files)
    line = [line for line in ended.stderr.splitlines() if line.startswith("fastselfie: ")]
    assert ended.returncode == 2
    assert len(line) == 1
    assert "cannot write the checkpoint of step" in line[0]
    assert f"the one of step {saved[-1]} is as it was" in line[0]
    assert "Traceback" not in ended.stderr
    assert checkpoints(run) == saved
    assert all(is_whole(checkpoint(run, step)) for step in saved)
    assert f"going on from step {saved[-1]}" in succeed(*command, cwd=tmp_path).stderr
    assert newest_step(run) == 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", disk], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_no_space_for_a_checkpoint(small_disk: Path) -> None:
    run = small_disk / "run"
    command = (*COMMAND, "--checkpoint-every", "10", "--out", run)
    ended = fastselfie(*command, cwd=small_disk.parent)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert "cannot write the checkpoint of step 20 (No space left on device)" in last
    assert "the one of step 10 is as it was" in last
    assert "Traceback" not in ended.stderr
    assert checkpoints(run) == [10]
    assert is_whole(checkpoint(run, 10))
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert "going on from step 10" in succeed(*command, cwd=small_disk.parent).stderr
    assert newest_step(run) == 24


def test_no_space_for_anything(small_disk: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as file:
        filled = file.write(bytes(4 << 20))  # as much as there is room for
    assert filled < 4 << 20
    run = small_disk / "run"
    command = (*COMMAND, "--checkpoint-every", "10", "--out", run)
    line = assert_refused(fastselfie(*command, cwd=small_disk.parent))
    assert "cannot be written (No space left on device)" in line
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    succeed(*command, cwd=small_disk.parent)
