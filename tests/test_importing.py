"""Ctrl-C while a command imports torch ends it by the status of Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import as_in_a_terminal
from tests.warm_start import ROOT, environment

# C++ that calls Python has no way to go on with an exception that it does not expect.
_TORCH = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
except KeyboardInterrupt:
    os.abort()
"""


@pytest.mark.parametrize(
    "words",
    [
        *("pretrain tiny --data synthetic", "finetune tiny --data synthetic --scratch", "probe tiny --from run"),
        *("protocol tiny", "report run", "export run --to file.safetensors", "render --out scenes"),
        *("prepare source folder", "doctor", "demo"),
    ],
)
def test_ctrl_c(words: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(_TORCH)
    variables = environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "fastselfie", *words.split()]
    ended = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (130, "")
