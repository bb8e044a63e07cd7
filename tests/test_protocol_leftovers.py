"""Runs that a killed protocol has left are waited for while they save themselves."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from fastselfie.errors import UserError
from fastselfie.protocol.leftovers import wait_for_leftovers
from fastselfie.protocol.process import die_with_parent
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.world import World


def held(run: Path) -> ExitStack:
    """A run at work in its folder until that is closed."""
    run.mkdir(parents=True, exist_ok=True)
    stack = ExitStack()
    stack.enter_context(RunFolder(run).locked(World(device=torch.device("cpu"))))
    return stack


def test_runs_that_save_themselves_are_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".lock").touch()
    for name in ("pretrain/base", "finetune/base/resnet50-5-scratch-0", "finetune/base/done"):
        held(tmp_path / name).close()
    first, last = held(tmp_path / "pretrain/base"), held(tmp_path / "finetune/base/resnet50-5-scratch-0")
    freed: list[str] = []

    def save() -> None:
        for name, run in (("first", first), ("last", last)):
            time.sleep(0.3)
            freed.append(name)
            run.close()

    thread = threading.Thread(target=save)
    thread.start()
    wait_for_leftovers(tmp_path)
    assert freed == ["first", "last"]
    thread.join()
    assert capsys.readouterr().err == (
        "waiting for runs of a protocol that was killed to save themselves:"
        " finetune/base/resnet50-5-scratch-0, pretrain/base\n"
    )


def test_a_run_that_goes_on_is_named(tmp_path: Path) -> None:
    with held(tmp_path / "pretrain/base"), pytest.raises(UserError, match=r"another process still works in pretrain/b"):
        wait_for_leftovers(tmp_path, longest_s=0.2)


def test_nothing_is_said_where_nothing_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path):  # the protocol's own lock is no run's
        wait_for_leftovers(tmp_path, longest_s=0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("alive", [True, False])
def test_a_protocol_that_is_killed_before_its_run_can_hear_of_it(alive: bool) -> None:
    """Between the fork and the child's asking to be told; a run without a protocol would go on."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # as the protocol has one
        die_with_parent(os.getppid() if alive else os.getpid())
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (3 if alive else -signal.SIGTERM)
