"""Which version of an operation runs: the Triton kernels on a CUDA device, plain PyTorch elsewhere.

The choice is the process's, like those in ``torch.backends``: a network is compiled for one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

Kernels = Literal["auto", "on", "off"]

SLOWER: frozenset[tuple[str, tuple[int, ...]]] = frozenset()
"""Operations and shapes whose kernel a committed result (``bench/results/kernels_*.json``) shows to be slower than the
compiled reference: ``auto`` leaves those to plain PyTorch. A test holds this to the results; there are none yet."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_IS_NVIDIA = torch.version.hip is None
_chosen: Kernels = "auto"


def triton_version() -> str | None:
    """The version of Triton that is installed, None without it."""
    for name in ("triton", "pytorch-triton"):  # the second comes with torch's nightly builds
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def lacks(device_type: str) -> str | None:
    """What the kernels would need on a device of that type and do not have; None if nothing."""
    if not _HAS_TRITON:
        return "triton (pip install triton)"
    if interpreted():
        return None
    if device_type == "cuda":
        capable = _IS_NVIDIA and torch.cuda.get_device_capability() >= (8, 0)
        return None if capable else "an NVIDIA device of compute capability 8.0 or later"
    return "a CUDA device, or TRITON_INTERPRET=1 in the environment to interpret them slowly for a test"


def interpreted() -> bool:
    """Whether Triton interprets kernels in NumPy instead of compiling them; it looks at the environment as well."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Run the kernels (``on``), plain PyTorch (``off``), or whichever the tensors' device calls for (``auto``).

    Raises:
        ValueError: ``kernels`` is none of these.
    """
    global _chosen
    if kernels not in ("auto", "on", "off"):
        raise ValueError(f"kernels: expected auto, on or off, got {kernels!r}")
    before, _chosen = _chosen, kernels
    try:
        yield
    finally:
        _chosen = before


def fused(operation: str, device: torch.device, *shape: int, fits: bool = True) -> bool:
    """Whether ``operation`` runs as a kernel on tensors of ``device``.

    Args:
        shape: what `SLOWER` tells shapes by. fits: whether the kernel takes such sizes; ``on`` leaves it to complain.
    """
    if _chosen != "auto":
        return _chosen == "on"
    return device.type == "cuda" and _HAS_TRITON and _IS_NVIDIA and fits and (operation, shape) not in SLOWER
