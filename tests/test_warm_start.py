"""Forked commands are what they would be when started as a user does, and only sooner."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.command import PROGRAM, SMALL, assert_equal_runs, contents, fastselfie, newest_step, start, succeed
from tests.warm_start import Forked

RUN = ("pretrain", *SMALL, "--steps", "3", "--log-every", "1", "--held-out", "20")


def test_the_same_run_started_both_ways(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "forked" / "run", tmp_path / "started" / "run"
    ended = [
        succeed(*RUN, "--out", run, cwd=tmp_path, program=program)
        for run, program in zip(runs, ((), PROGRAM), strict=True)
    ]
    assert_equal_runs(*runs)
    assert contents(runs[0]).keys() - contents(runs[1]).keys() <= {
        name for name in contents(runs[0]) if "tfevents" in name
    }
    said = [
        [line.partition(" · ")[0].replace(str(run), "") for line in one.stderr.splitlines()]
        for one, run in zip(ended, runs, strict=True)
    ]
    assert said[0] == said[1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("words", [["--version"], ["dance"], ["pretrain", "--help"], ["pretrain", "tiny", "--lr", "x"]])
def test_what_is_said_is_the_same(words: list[str], tmp_path: Path) -> None:
    forked, started = fastselfie(*words, cwd=tmp_path), fastselfie(*words, cwd=tmp_path, program=PROGRAM)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_a_forked_run_is_killed_and_waited_for(tmp_path: Path) -> None:
    process = start(*RUN[:-4], "--steps", "5000", "--log-every", "1", "--out", tmp_path / "run", cwd=tmp_path)
    assert isinstance(process, Forked)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.01)
    while not newest_step(tmp_path / "run"):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.poll() == process.returncode == -signal.SIGKILL
    process.send_signal(signal.SIGKILL)  # to nobody
