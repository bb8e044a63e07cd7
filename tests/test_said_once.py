"""Under torchrun, which ends all processes when one of them has failed, what is wrong is said, and said once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastselfie import failing
from tests.warm_start import ROOT, environment

# The process of the number that is given comes to its end some time after the other, which torchrun would notice.
_COMMAND = """
import os, pathlib, sys, time
sys.path.insert(0, {root!r})
from fastselfie import cli, commands, failing
from fastselfie.errors import UserError
failing.FIRST_S = 60.0  # a busy machine
there, late, errors = pathlib.Path({there!r}), {late!r}, {errors!r}
def broken(words):
    rank = os.environ["RANK"]
    while rank == late and not there.exists():
        time.sleep(0.01)
    time.sleep(2 * (rank == late))
    there.touch()
    raise eval(errors[int(rank)])
commands.COMMANDS["broken"] = broken
cli.main(["broken"])
"""
_LOST = "RuntimeError('Connection closed by peer [127.0.0.1]')"


@pytest.mark.parametrize(
    ("late", "errors", "lines"),
    [
        ("0", ("UserError('the data')",) * 2, ["fastselfie: the data"]),
        ("0", ("ValueError('a fault of ours')", _LOST), ["ValueError: a fault of ours"]),
        ("1", (_LOST, "ValueError('a fault of ours')"), ["ValueError: a fault of ours"]),
    ],
)
def test_once(late: str, errors: tuple[str, str], lines: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_COMMAND.format(root=str(ROOT), there=str(tmp_path / "there"), late=late, errors=errors))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launcher, str(script)], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith(("fastselfie: ", "ValueError", "Runtime"))]
    assert said == lines


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_one_process_alone_met_is_said(rank: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """By whichever, where nobody ends it."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(failing, "FIRST_S", 0.0)
    failing.fail("the data")
    assert capsys.readouterr().err == "fastselfie: the data\n"
