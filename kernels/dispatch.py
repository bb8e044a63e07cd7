"""Which version of an operation runs: Triton kernels on a CUDA device, numba's on a CPU, or plain PyTorch.

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
from torch import Tensor

from fastselfie.kernels import cpu

Kernels = Literal["auto", "on", "off"]
Trunk = Literal["auto", "fused", "plain"]
Norm = Literal["auto", "torch", "numba"]

SLOWER: frozenset[tuple[str, tuple[int, ...]]] = frozenset()
"""Operations and shapes whose kernel a committed result (``bench/results/kernels_*.json``) shows to be slower than the
compiled reference: ``auto`` leaves those to plain PyTorch. A test holds this to the results; there are none yet."""

FASTER_TRUNK: frozenset[str] = frozenset()
"""Names of devices on which a committed result (``bench/results/``) shows the fused trunk to beat the compiled one:
``auto`` runs it there alone. A test holds this to the results; there are none yet."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_IS_NVIDIA = torch.version.hip is None
_chosen: Kernels = "auto"
_chosen_trunk: Trunk = "auto"
_chosen_norm: Norm = "auto"


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
        return None if _IS_NVIDIA and _capable() else "an NVIDIA device of compute capability 8.0 or later"
    return "a CUDA device, or TRITON_INTERPRET=1 in the environment to interpret them slowly for a test"


def interpreted() -> bool:
    """Whether Triton interprets kernels in NumPy instead of compiling them; it looks at the environment as well."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@contextmanager
def using(kernels: Kernels, trunk: Trunk = "auto", norm: Norm = "auto") -> Iterator[None]:
    """Run the kernels (``on``), plain PyTorch (``off``), or whichever the tensors' device calls for (``auto``).

    Args:
        trunk: the trunk's stages as kernels (``fused``), as plain PyTorch modules (``plain``), or fused on the devices
            where a committed result shows that to be faster (``auto``).
        norm: batch norm and ReLU of bf16 maps on a CPU as kernels that numba compiles (``numba``, and ``auto`` where
            it is installed) or as PyTorch's own (``torch``).

    Raises:
        ValueError: an argument is none of these.
    """
    global _chosen, _chosen_trunk, _chosen_norm
    if kernels not in ("auto", "on", "off"):
        raise ValueError(f"kernels: expected auto, on or off, got {kernels!r}")
    if trunk not in ("auto", "fused", "plain"):
        raise ValueError(f"trunk: expected auto, fused or plain, got {trunk!r}")
    if norm not in ("auto", "torch", "numba"):
        raise ValueError(f"norm: expected auto, torch or numba, got {norm!r}")
    before = _chosen, _chosen_trunk, _chosen_norm
    _chosen, _chosen_trunk, _chosen_norm = kernels, trunk, norm
    try:
        yield
    finally:
        _chosen, _chosen_trunk, _chosen_norm = before


def fused(operation: str, device: torch.device, *shape: int, fits: bool = True) -> bool:
    """Whether ``operation`` runs as a kernel on tensors of ``device``.

    Args:
        shape: what `SLOWER` tells shapes by. fits: whether the kernel takes such sizes; ``on`` leaves it to complain.
    """
    if _chosen != "auto":
        return _chosen == "on"
    return _there(device) and fits and (operation, shape) not in SLOWER


def fused_trunk(device: torch.device, dtype: torch.dtype, fits: bool) -> bool:
    """Whether the trunk's stages run as kernels on maps of that device and dtype.

    Raises:
        ValueError: they were asked for and do not take such channels.
    """
    if _chosen_trunk == "fused" and not fits:
        raise ValueError("trunk: the kernels take channels in multiples of 16, so widths in multiples of 0.25")
    if _chosen_trunk != "auto":
        return _chosen_trunk == "fused"
    there = bool(FASTER_TRUNK) and _there(device) and fits and dtype != torch.float32
    return there and device_name(device.index) in FASTER_TRUNK


def numba_norm(maps: Tensor) -> bool:
    """Whether batch norm and ReLU of such maps run as numba's kernels.

    Raises:
        RuntimeError: they were asked for and lack something on this machine.
    """
    if _chosen_norm == "torch" or maps.device.type != "cpu" or maps.dtype != torch.bfloat16:
        return False
    lacks = cpu.lacks()
    if lacks and _chosen_norm == "numba":
        raise RuntimeError(f"norm: numba's kernels need {lacks}")
    return lacks is None


def _there(device: torch.device) -> bool:
    """Whether kernels can be compiled for that device here."""
    return device.type == "cuda" and _HAS_TRITON and _IS_NVIDIA and _capable(device.index)


def _capable(index: int | None = None) -> bool:
    """Whether a CUDA device, the current one by default, is one that the kernels are written for."""
    return torch.cuda.get_device_capability(index) >= (8, 0)


def device_name(index: int | None = None) -> str:
    """The name of a CUDA device, of the current one by default."""
    return torch.cuda.get_device_name(index)


# All that torch.compiler.assume_constant_result does, but it also imports torch._dynamo, which takes as long as torch.
_capable._dynamo_marked_constant = True  # type: ignore[attr-defined]
device_name._dynamo_marked_constant = True  # type: ignore[attr-defined]
