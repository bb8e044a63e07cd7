"""Memory that is kept: the system's own count of page faults tells."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps memory when asked")

PROGRAM = """
import resource, sys
import torch
from fastselfie.training.memory import keep_freed_memory

print(keep_freed_memory().value if sys.argv[1] == "asked" else "-")
def fill():
    torch.zeros(2**24)  # 64 MiB, of which 16,384 small pages
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> tuple[str, int]:
    """What was chosen, and page faults of ten more tensors of the size of the first."""
    command = [sys.executable, "-c", PROGRAM, word]
    chosen, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return chosen, int(count)


def test_freed_memory_is_used_again_in_huge_pages() -> None:
    """A tenth of the faults at most, as a rule; but which free place a tensor gets, and whether the system finds huge
    pages for it, differs from run to run."""
    chosen, count = faults("asked")
    assert chosen.startswith("glibc, keeping freed memory")
    if "huge pages" not in chosen:
        pytest.skip("this system gives no huge pages when asked")
    assert count < 0.75 * faults("not asked")[1]
