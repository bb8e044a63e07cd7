"""Kernels for a CPU, compiled by numba (an extra, so they are imported where they run)."""

from __future__ import annotations

import importlib
import sys
from functools import cache


@cache
def lacks() -> str | None:
    """What the kernels would need on this machine and do not have; None if nothing. Imports numba."""
    if sys.platform != "linux":
        return "Linux, where PyTorch runs on libgomp"
    try:
        importlib.import_module("numba")  # first: what it stands on is named by fewer
        threads = importlib.import_module("fastselfie.kernels.cpu.threads")
    except (ImportError, OSError) as error:  # numba is not installed, or does not go with the NumPy or LLVM that is
        return f"numba (pip install 'fastselfie[turbo]'; {error})"
    if not threads.COMPILES:
        return "numba's compiler, which NUMBA_DISABLE_JIT switches off"
    return None if threads.THERE else "a PyTorch that runs on libgomp, GCC's OpenMP"
