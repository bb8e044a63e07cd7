"""Kernels for a CPU, compiled by numba (an extra, so they are imported where they run)."""

from __future__ import annotations

import importlib
from functools import cache


@cache
def lacks() -> str | None:
    """What the kernels would need on this machine and do not have; None if nothing. Imports numba."""
    try:
        threads = importlib.import_module("fastselfie.kernels.cpu.threads")
    except ImportError as error:  # numba is not installed, or does not go with the NumPy that is
        return f"numba (pip install 'fastselfie[turbo]'; {error})"
    return None if threads.THERE else "a PyTorch that runs on libgomp, GCC's OpenMP, as on Linux"
