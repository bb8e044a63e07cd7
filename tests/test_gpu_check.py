"""`make gpu-check` runs on a machine with its own packages, among which the argument parser is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_gpu_tests_are_collected_without_the_argument_parser() -> None:
    program = (
        "import sys; sys.modules['tyro'] = None\n"
        "import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-m', 'gpu', 'tests', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("test_gpu.py::test_patches_are_the_cpus", "test_host_sync.py::", "test_randomness.py::"):
        assert name in done.stdout
