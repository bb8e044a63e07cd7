"""``fastselfie doctor``: what this machine has, what will be used, what is missing and why it matters."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table

import fastselfie
from fastselfie.kernels.dispatch import triton_version
from fastselfie.pipelines.decoder import dali_version
from fastselfie.training.hardware import choose_compile, choose_device, choose_kernels, choose_precision, choose_trunk

Row = tuple[str, str, str]


def examine() -> None:
    """Print the findings as a table."""
    table = Table(title=f"FastSelfie {fastselfie.__version__}")
    for heading in ("what", "found", "what it means"):
        table.add_column(heading)
    for row in [*_machine(), *_used(), *_optional()]:
        table.add_row(*row)
    Console().print(table)


def _machine() -> list[Row]:
    rows = [
        ("Python", sys.version.split()[0], "3.11 or later is needed"),
        ("torch", torch.__version__, "2.11 or later is needed"),
        ("CPU cores", str(os.cpu_count()), f"torch computes with {torch.get_num_threads()} threads"),
    ]
    if not torch.cuda.is_available():
        why = "this build of torch has none" if torch.version.cuda is None else "the driver shows none"
        return [*rows, ("CUDA device", "none", f"{why}: training runs on the CPU, orders of magnitude slower")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        rows.append((f"CUDA device {index}", properties.name, memory))
    return rows


def _used() -> list[Row]:
    device = choose_device("auto")
    precision, compiled = choose_precision("auto", device.value), choose_compile("auto", device.value)
    choices = {
        "device": device,
        "precision": precision,
        "compile": compiled,
        "kernels": choose_kernels("auto", device.value),
        "trunk": choose_trunk("auto", device.value, precision.value, width=1.0, compiled=compiled.value),
    }
    return [(f"--{name} auto", choice.value, choice.why) for name, choice in choices.items()]


def _optional() -> list[Row]:
    compiler = shutil.which("g++") or shutil.which("clang++")
    return [
        ("C++ compiler", compiler or "missing", "--compile on needs one on a CPU"),
        (
            "nvidia-dali",
            dali_version() or "missing",
            "JPEG and PNG files are decoded by it: pip install 'fastselfie\\[dali]'",
        ),
        ("triton", triton_version() or "missing", "--compile, --kernels and --trunk need it on a CUDA device"),
        ("tensorboard", _version("tensorboard"), "shows a run's curves: tensorboard --logdir runs"),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
