"""What this machine has and what ``auto`` therefore means. Every choice carries its reason."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from fastselfie.config import PretrainConfig, RunConfig
from fastselfie.errors import UserError
from fastselfie.kernels import cpu, dispatch
from fastselfie.kernels.operations import LARGEST_GRID

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A resolved setting and why it was resolved so."""

    value: str
    why: str


def choose_device(asked: str) -> Choice:
    """``cpu`` or ``cuda``.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UserError(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; use --device cpu or see `fastselfie doctor`"
        )
    if asked != "auto":
        return Choice(value=asked, why="asked for")
    if there:
        return Choice(value="cuda", why=torch.cuda.get_device_name())
    return Choice(value="cpu", why="no CUDA device")


def choose_precision(asked: str, device: str) -> Choice:
    """``fp32`` or ``bf16``.

    Raises:
        UserError: bf16 was asked for and the device cannot multiply it.
    """
    if device == "cuda":
        native, what = torch.cuda.is_bf16_supported(including_emulation=False), "the CUDA device"
    else:
        # oneDNN also emulates bf16: what counts are the processor's own instructions.
        native, what = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(), "the CPU"
    if asked == "bf16" and not native:
        raise UserError(f"--precision bf16: {what} has no bf16 arithmetic; use --precision fp32")
    if asked != "auto":
        return Choice(value=asked, why="asked for")
    return (
        Choice(value="bf16", why=f"{what} multiplies bf16")
        if native
        else Choice(value="fp32", why=f"{what} has no bf16")
    )


def choose_compile(asked: str, device: str) -> Choice:
    """``on`` or ``off``.

    Raises:
        UserError: compilation was asked for and something that it needs is missing.
    """
    lacks = compiling_lacks(device)
    if asked == "on" and lacks:
        raise UserError(f"--compile on: needs {lacks}; install it or use --compile off")
    if asked != "auto":
        return Choice(value=asked, why="asked for")
    if device == "cpu":
        return Choice(value="off", why="on a CPU it takes a minute or two, for some 10% in speed")
    if lacks:
        return Choice(value="off", why=f"compiling needs {lacks}")
    return Choice(value="on", why="expected to win on CUDA; not measured yet")


def compiling_lacks(device: str) -> str | None:
    """What torch.compile would miss on ``device``, None if nothing."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    compilers = ("g++", "clang++") if device == "cpu" else ("gcc", "clang", "cc")
    return None if any(map(shutil.which, compilers)) else f"a compiler ({' or '.join(compilers[:2])})"


def choose_kernels(asked: str, device: str, places: int = 0) -> Choice:
    """``on`` or ``off``; masked patches are asked about in a grid of so many ``places``.

    Raises:
        UserError: kernels were asked for and something that they need is missing, or one does not fit.
    """
    lacks, most = dispatch.lacks(device), LARGEST_GRID
    if asked == "on" and lacks:
        raise UserError(f"--kernels on: needs {lacks}; or use --kernels off")
    if asked == "on" and places > most:
        raise UserError(f"--kernels on: location_head's takes {most} patches, not {places}; use --kernels auto")
    if asked != "auto":
        return Choice(value=asked, why="asked for, interpreted" if asked == "on" and device == "cpu" else "asked for")
    if device == "cpu":
        return Choice(value="off", why="plain PyTorch serves the CPU")
    if lacks:
        return Choice(value="off", why=f"kernels need {lacks}")
    but = f"; location_head's takes {most} patches, not {places}: that is plain PyTorch" if places > most else ""
    return Choice(value="on", why="expected to win on CUDA; not measured yet" + but)


def choose_trunk(asked: str, device: str, precision: str, width: float, compiled: str) -> Choice:
    """``fused`` or ``plain``; unasked fused only where it was measured to win, which is in a compiled network.

    Raises:
        UserError: the fused trunk was asked for, and something that it needs is missing or it takes no such width.
    """
    lacks = dispatch.lacks(device)
    if asked == "fused" and lacks:
        raise UserError(f"--trunk fused: needs {lacks}; or use --trunk plain")
    if asked == "fused" and width % 0.25:
        raise UserError(f"--trunk fused: takes widths in multiples of 0.25, not {width}; or use --trunk plain")
    if asked != "auto":
        interpreted = asked == "fused" and device == "cpu"
        return Choice(value=asked, why="asked for, interpreted" if interpreted else "asked for")
    if device == "cpu":
        return Choice(value="plain", why="plain PyTorch serves the CPU")
    if lacks:
        return Choice(value="plain", why=f"kernels need {lacks}")
    if width % 0.25 or precision == "fp32":
        return Choice(value="plain", why="fused is for bf16 and widths in multiples of 0.25")
    wins = compiled == "on" and dispatch.device_name() in dispatch.FASTER_TRUNK
    return Choice(value="fused", why="measured to win") if wins else Choice(value="plain", why="no measured win here")


def choose_norm(asked: str, device: str, precision: str, compiled: str, sync_bn: bool) -> Choice:
    """``numba`` or ``torch``.

    Raises:
        UserError: numba's was asked for where it cannot run.
    """
    hindrance = _hindrance_to_numba(device, precision, compiled, sync_bn)
    if asked == "numba" and hindrance:
        raise UserError(f"--norm numba: {hindrance}; use --norm torch")
    if asked != "auto":
        return Choice(value=asked, why="asked for")
    return Choice(value="torch", why=hindrance) if hindrance else Choice(value="numba", why="faster than PyTorch's")


def _hindrance_to_numba(device: str, precision: str, compiled: str, sync_bn: bool) -> str | None:
    if device != "cpu":
        return "numba's batch norm is for a CPU"
    if precision != "bf16":
        return "numba's batch norm is for bf16"
    if compiled == "on":
        return "a compiled network has its own batch norm"
    if sync_bn:
        return "--sync-bn has its own batch norm"
    lacks = cpu.lacks()
    return f"numba's batch norm needs {lacks}" if lacks else None


def choose_sgd(asked: str, device: str) -> Choice:
    """``torch`` or ``apex``.

    Raises:
        UserError: Apex was asked for and cannot be used.
    """
    if asked == "apex":
        if device != "cuda":
            raise UserError("--sgd apex: updates on a CUDA device alone; use --sgd torch")
        remedy = "build NVIDIA Apex from source with its CUDA extensions or use --sgd torch"
        try:
            from apex.multi_tensor_apply import multi_tensor_applier
            from apex.optimizers import FusedSGD  # noqa: F401 (a package of the same name has none)
        except ImportError as error:
            raise UserError(f"--sgd apex: {error}; {remedy}") from None
        if not multi_tensor_applier.available:
            raise UserError(f"--sgd apex: it was built without its CUDA extensions; {remedy}")
        return Choice(value="apex", why="asked for")
    return Choice(value="torch", why="fused")


def resolve(config: RunConfig, device: str) -> dict[str, Choice]:
    """Device, precision, compile, kernels, trunk, norm and SGD as they will be, each with its reason; determinism if
    asked for."""
    places = config.patches if isinstance(config, PretrainConfig) else 0
    precision, compiled = choose_precision(config.precision, device), choose_compile(config.compile, device)
    asked = {"determinism": Choice(value="on", why="asked for")} if config.deterministic else {}
    return {
        "device": choose_device(config.device),
        "precision": precision,
        "compile": compiled,
        "kernels": choose_kernels(config.kernels, device, places),
        "trunk": choose_trunk(config.trunk, device, precision.value, config.width, compiled.value),
        "norm": choose_norm(config.norm, device, precision.value, compiled.value, config.sync_bn),
        "sgd": choose_sgd(config.sgd, device),
        **asked,
    }


def set_convolutions(config: RunConfig) -> None:
    """How cuDNN convolves under a resolved ``config``. fp32 means fp32, as it does in products by default. Unless the
    same bits are asked for, cuDNN tries its algorithms on each shape, of which there are few, and keeps the fastest."""
    torch.backends.cudnn.allow_tf32 = config.precision != "fp32"
    torch.backends.cudnn.benchmark = not config.deterministic


def resolved(config: C, choices: Mapping[str, Choice]) -> C:
    """``config`` with the values that `resolve` chose."""
    names = ("device", "precision", "compile", "kernels", "trunk", "norm")
    values: dict[str, Any] = {name: choices[name].value for name in names}
    return dataclasses.replace(config, **values)
