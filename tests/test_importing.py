"""What commands import, and Ctrl-C while they do, which ends them by the status of Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastselfie.kernels.dispatch import device_name
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


def test_no_command_waits_for_the_compiler() -> None:
    """torch._dynamo takes as long to import as the rest of torch, and 140 MiB; who compiles or trains gets it then."""
    modules = (
        *("evaluation.probe", "evaluation.export", "report.page", "protocol.protocol", "training.pretrain", "doctor"),
        *("pipelines.standalone", "pipelines.prepare"),
    )
    imports = ", ".join(f"fastselfie.{module}" for module in modules)
    command = [sys.executable, "-c", f"import sys, {imports}; sys.exit('torch._dynamo' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, env=environment(), timeout=120, check=False).returncode == 0


def test_a_mark_of_the_compiler_is_the_one_that_torch_sets() -> None:
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def marked() -> None: ...

    assert vars(device_name) == vars(marked) != {}
