"""A script in two processes that interpret kernels: PyTorch's launcher imports it once and forks them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.command import TIMEOUT_S
from tests.warm_start import ROOT, environment


def two_processes(program: str, folder: Path) -> None:
    """Run ``program``, the text of a script that is given ``folder``, to a good end in both. It sets up their group.

    Not from the process of `tests.warm_start`: that has Triton, which decides when it is imported whether to interpret.
    """
    script = folder / "program.py"
    script.write_text(program)
    launcher = ("--standalone", "--nproc-per-node", "2", "--start-method", "fork", "--run-path", str(script))
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launcher, str(folder)], cwd=folder, capture_output=True,
        env=environment() | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1"}, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
