"""Inductor's cache on disk of kernels for a CPU, and what of it a killed run has left half-written.

Inductor takes a library that is there for a whole one (torch 2.13). Where the linker was killed in it, the next start
ends in a traceback or by SIGBUS, or computes with holes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastselfie.files import held
from fastselfie.training.reporter import say

_NAME, _SUFFIX, _LOCKS = "fastselfie-", ".compiling", "locks"


@contextmanager
def compiling() -> Iterator[None]:
    """For a block in which Inductor compiles for the CPU: first removes what blocks that were killed have compiled.

    A block is known by a file in the cache that its process holds locked, and that only its good end removes.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # torch.compile's, which not every run needs

    folder = Path(cache_dir())
    with held(folder / f"{_NAME}lock", wait=True):  # nobody compiles beside what is being removed
        removed = sum(_forgotten(mark) for mark in folder.glob(f"{_NAME}*{_SUFFIX}"))
    if removed:
        say(f"compiling anew {removed} kernels in {folder}: a run was killed while it compiled them")
    descriptor, name = tempfile.mkstemp(prefix=_NAME, dir=folder)
    os.close(descriptor)
    with held(Path(name)):
        mark = Path(name).rename(name + _SUFFIX)
        yield
        mark.unlink(missing_ok=True)


def _forgotten(mark: Path) -> int:
    """Remove the libraries that were written since ``mark`` was made, if its process has gone; how many.

    Each is under the lock that Inductor holds to write it, named as the library is.
    """
    locks, removed = mark.parent / _LOCKS, 0
    with held(mark) as gone:
        if gone:
            began = mark.stat().st_mtime
            for library in mark.parent.glob("*/*.so"):
                with held(locks / f"{library.name.split('.')[0]}.lock") as free, suppress(FileNotFoundError):
                    if free and library.stat().st_mtime >= began:
                        library.unlink()
                        removed += 1
            mark.unlink()
    return removed
