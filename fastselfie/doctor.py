"""``fastselfie doctor``: what this machine has, what will be used, what is missing and why it matters."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fastselfie
from fastselfie.kernels.dispatch import triton_version
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.decoder import dali_version
from fastselfie.pipelines.decoders import choose_decoder
from fastselfie.pipelines.footprint import footprint
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import View
from fastselfie.recipes import recipe
from fastselfie.tool_arguments import DoctorArguments
from fastselfie.training.data import loading
from fastselfie.training.hardware import choose_device, resolve
from fastselfie.training.world import World

Finding = tuple[str, str, str]


def examine(asked: DoctorArguments) -> None:
    """Print the findings as a table.

    Raises:
        UserError: the data cannot be opened, or a setting makes no sense.
    """
    loader = [_loader(asked)] if asked.data is not None else []
    table = Table(title=f"FastSelfie {fastselfie.__version__}")
    for heading in ("what", "found", "what it means"):
        table.add_column(heading)
    for row in [*_machine(), *_used(), *loader, *_optional()]:
        table.add_row(*map(Text, row))  # as it stands: a bracket in a path is no markup
    Console().print(table)


def _machine() -> list[Finding]:
    rows = [
        ("Python", sys.version.split()[0], "3.11 or later is needed"),
        ("torch", torch.__version__, "2.11 or later is needed"),
        (
            "CPU cores",
            f"{cores()} of {os.cpu_count()}",
            f"what this process may use; torch computes with {_threads(torch.get_num_threads())}",
        ),
    ]
    if not torch.cuda.is_available():
        why = "this build of torch has none" if torch.version.cuda is None else "the driver shows none"
        return [*rows, ("CUDA device", "none", f"{why}: training runs on the CPU, orders of magnitude slower")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        rows.append((f"CUDA device {index}", properties.name, memory))
    return rows


def _used() -> list[Finding]:
    choices = resolve(recipe("imagenet224").pretrain, choose_device("auto").value)
    del choices["sgd"]  # has no `auto`
    return [(f"--{name} auto", choice.value, choice.why) for name, choice in choices.items()]


def _loader(asked: DoctorArguments) -> Finding:
    """What loading ``--data`` will take."""
    start = recipe(asked.recipe).pretrain
    config = dataclasses.replace(
        start, data=asked.data, batch_size=asked.batch_size or start.batch_size, prefetch=asked.prefetch,
        loader_threads=asked.loader_threads,
    )  # fmt: skip
    images = open_source(config.data, config.image_size).train
    if not isinstance(images, EncodedImages):
        size = f"{images.images_SHW3.nbytes / 2**20:.0f} MiB"
        return f"loading {asked.data}", size, "the images themselves, on the device"
    world = World(device=torch.device(choose_device("auto").value))
    config = dataclasses.replace(config, decoder=choose_decoder("auto", world.device)[0])
    how = loading(config, world, config.batch_size)
    takes = footprint(images, View.of(config, config.grid), how, world.device, kept=world.device.type == "cpu")
    means = (
        f"at most, {config.prefetch} batches of {config.batch_size} ahead, {_threads(how.threads)}, by {how.decoder}"
    )
    return f"loading {asked.data}", takes.told(), means


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _optional() -> list[Finding]:
    compiler = shutil.which("g++") or shutil.which("clang++")
    return [
        ("C++ compiler", compiler or "missing", "--compile on needs one on a CPU"),
        (
            "nvidia-dali",
            dali_version() or "missing",
            "decodes JPEG and PNG images, on a GPU where there is one: pip install 'fastselfie[dali]'",
        ),
        ("simplejpeg", _version("simplejpeg"), "decodes them faster on a CPU: pip install 'fastselfie[turbo]'"),
        ("isal", _version("isal"), "checks packed images faster than zlib: pip install 'fastselfie[turbo]'"),
        (
            "numba",
            _version("numba"),
            "speeds batch norm on a CPU, and prepare --recode markers needs it: pip install 'fastselfie[turbo]'",
        ),
        ("triton", triton_version() or "missing", "--compile, --kernels and --trunk need it on a CUDA device"),
        ("tensorboard", _version("tensorboard"), "shows a run's curves: tensorboard --logdir runs"),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
