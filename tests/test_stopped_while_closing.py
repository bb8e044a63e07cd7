"""A run that was stopped closes its files, and hears once more then that it is to stop: from torchrun, for one."""

from __future__ import annotations

from pathlib import Path

from tests.command import SMALL, TIMEOUT_S, checkpoints
from tests.warm_start import Forked

_PROGRAM = """
import os, signal, sys
from fastselfie import cli
from fastselfie.training import loop, reporter

step, close = loop.Trainer.step, reporter.Reporter.close

def stopped_at_the_second(self, number):
    step(self, number)
    if number == 1:
        os.kill(os.getpid(), signal.SIGTERM)

def stopped_again(self):
    os.kill(os.getpid(), signal.SIGTERM)
    close(self)

loop.Trainer.step, reporter.Reporter.close = stopped_at_the_second, stopped_again
sys.exit(cli.status(sys.argv[1:]))
"""


def test_it_says_that_it_is_saved(tmp_path: Path) -> None:
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(_PROGRAM)
    words = ["pretrain", *SMALL, "--steps", "9", "--held-out", "0", "--out", str(run)]
    process = Forked(words, tmp_path, program=str(script))
    _, err = process.communicate(TIMEOUT_S)
    assert process.returncode == 128 + 15
    assert "stopped and saved at step 2 of 9; the same command goes on" in err
    assert checkpoints(run) == [2]
