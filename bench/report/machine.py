"""The machine's own ceilings, measured in the same process as what is held against them, and its clocks."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.measure import copy_rate, product_flops
from fastselfie.errors import UserError
from fastselfie.training.hardware import choose_precision

_CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Attributes:
    matrix: FLOP/s of a large square product by dtype. copy: bytes a second, read and written, of a large copy.
    clocks: in words, read right after the products.
    """

    matrix: dict[str, float]
    copy: float
    clocks: str


def measure_machine(device: torch.device, smoke: bool) -> Machine:
    """Products in the dtypes that the device has, and a copy."""
    matrix = {"fp32": product_flops(torch.float32, device, smoke)}
    if not bf16_lacks(device):
        matrix["bf16"] = product_flops(torch.bfloat16, device, smoke)
    told = clocks(device)
    return Machine(matrix=matrix, copy=copy_rate(device, smoke), clocks=told)


def bf16_lacks(device: torch.device) -> str:
    """Why there is no bf16 arithmetic; empty where there is."""
    try:
        choose_precision("bf16", device.type)
    except UserError as error:
        return str(error)
    return ""


def clocks(device: torch.device) -> str:
    """What the device says of its clocks now."""
    if device.type == "cuda":
        return _nvidia_smi()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "not told by this system"
    mhz = sorted({float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")})
    return f"{mhz[0]:.0f} to {mhz[-1]:.0f} MHz (/proc/cpuinfo)" if mhz else "not told by this system"


def _nvidia_smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return "not told: no nvidia-smi"
    command = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "not told: nvidia-smi failed"
    if not (told := asked.stdout.splitlines()):
        return "not told: nvidia-smi lists no device"
    values = told[0].split(",")
    return ", ".join(f"{name} {value.strip()}" for name, value in zip(_CLOCKS.split(","), values, strict=False))
