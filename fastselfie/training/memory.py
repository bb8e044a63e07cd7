"""How the C library keeps a process's memory, for training on a CPU."""

from __future__ import annotations

import ctypes
import mmap
import platform
from pathlib import Path

from fastselfie.training.hardware import Choice

_HUGE_BYTES = 2 << 20
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


def keep_freed_memory() -> Choice | None:
    """Make the C library keep freed memory instead of returning it to the system after every large tensor, and ask for
    huge pages under what it will hand out.

    Without the first a training step on a CPU spends a good part of its time in page faults: each activation is mapped
    anew. Huge pages spare the processor most of its address translations, which cost double in a virtual machine.
    None where the C library is not glibc, which knows how.
    """
    if platform.libc_ver()[0] != "glibc":
        return None
    glibc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    if not (glibc.mallopt(m_mmap_max, 0) and glibc.mallopt(m_trim_threshold, -1)):
        return None
    if _ask_for_huge_pages(glibc, _available_memory() // 2):
        return Choice(value="glibc, keeping freed memory in huge pages", why="fewer page faults, fewer translations")
    return Choice(value="glibc, keeping freed memory", why="fewer page faults")


def _ask_for_huge_pages(glibc: ctypes.CDLL, size: int) -> bool:
    """Mark ``size`` bytes at the top of the heap for transparent huge pages, where the system leaves that to programs.

    They are taken and freed again; as nothing is trimmed they stay the heap's, and cost nothing before they are used.
    """
    if "[madvise]" not in _text(_HUGE_PAGES / "enabled") or size < _HUGE_BYTES:
        return False  # "always" needs no asking, "never" heeds none
    if _text(_OVERCOMMIT).strip() == "2":
        return False  # what is only reserved is then withheld from everybody else
    glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    glibc.free.argtypes = [ctypes.c_void_p]
    glibc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    region = glibc.malloc(size)
    if region is None:  # a limit on address space, say
        return False
    start = -(-region // _HUGE_BYTES) * _HUGE_BYTES
    marked = glibc.madvise(start, (region + size - start) // _HUGE_BYTES * _HUGE_BYTES, mmap.MADV_HUGEPAGE) == 0
    glibc.free(region)
    return marked


def _available_memory() -> int:
    """Bytes of memory that the system could give to programs now; 0 where it does not say."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _text(path: Path) -> str:
    """What a file of the system says, nothing where it is missing."""
    try:
        return path.read_text()
    except OSError:
        return ""
