"""Forked commands are what they would be when started as a user does, and only sooner."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests import command
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


HANGS = """
import multiprocessing, time

def waits_for_ever():
    time.sleep(1e6)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=waits_for_ever)
    process.start()
    process.join()
"""


@pytest.mark.parametrize("forked", [False, True])
def test_what_does_not_end_tells_where_it_is(forked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(HANGS)
    process = Forked([], tmp_path, program=str(script)) if forked else start(script, cwd=tmp_path, program=PROGRAM[:1])
    monkeypatch.setattr(command, "TIMEOUT_S", 3)
    with pytest.raises(AssertionError, match=r"(?s)did not end in 3 s.*in waits_for_ever.*in join"):
        command.end(process)
    assert process.returncode == -signal.SIGABRT
