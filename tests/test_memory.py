"""Memory that is kept: the system's own count of page faults tells."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps memory when asked")

PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from fastselfie.training import memory

if sys.argv[1] == "never":
    memory._HUGE_PAGES = Path(sys.argv[2])
print(memory.keep_freed_memory().value if sys.argv[1] != "not asked" else "-")
def fill():
    torch.zeros(2**24)  # 64 MiB, of which 16,384 small pages
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str) -> tuple[str, int]:
    """What was chosen, and page faults of ten more tensors of the size of the first."""
    command = [sys.executable, "-c", PROGRAM, *words]
    chosen, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return chosen, int(count)


def test_freed_memory_is_used_again() -> None:
    chosen, count = faults("asked")
    assert chosen.startswith("glibc, keeping freed memory")
    assert count < 40_000  # none, or those of a second place once
    if "huge pages" in chosen:  # else they may be the system's habit, and faults few without asking
        assert faults("not asked")[1] > 100_000


def test_where_the_system_has_no_huge_pages(tmp_path: object) -> None:
    chosen, count = faults("never", str(tmp_path))
    assert chosen == "glibc, keeping freed memory"
    assert count < 40_000
