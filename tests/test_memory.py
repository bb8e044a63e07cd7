"""Memory that is kept: the system's own count of page faults tells."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps memory when asked")

PROGRAM = """
import resource
import torch
from fastselfie.training.memory import keep_freed_memory

def faults():
    def fill():
        torch.zeros(2**24)  # 64 MiB, of which 16,384 small pages
    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        fill()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
print(keep_freed_memory().value)
print(faults())
"""


def test_freed_memory_is_used_again_in_huge_pages() -> None:
    """A tenth of the faults at most, as a rule; but which free place a tensor gets, and whether the system finds huge
    pages for it, differs from run to run."""
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    before, chosen, after = ended.stdout.splitlines()
    assert chosen.startswith("glibc, keeping freed memory")
    if "huge pages" not in chosen:
        pytest.skip("this system gives no huge pages when asked")
    assert int(after) < 0.75 * int(before)
