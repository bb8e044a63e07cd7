"""Triton's compiler without a GPU: what a launch would run is compiled for an architecture, and nothing is run.

Triton asks its driver which device there is. Here a driver names one without having it, and every launch becomes a
``warmup``, so that calling an operation with tensors on the CPU compiles exactly what it would launch on that device:
dtypes, constants and divisibility of the arguments, launch options. Works in Triton 3.6 and 3.7.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


class _NamedDevice:
    """A driver for an architecture such as 90. The device's index is the architecture: Triton caches kernels by it."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel compiled as some launch needs it.

    Attributes:
        name: module and function. arguments: what it is compiled for: the dtypes of tensors and numbers, constants, and
            the number of warps. compiled: Triton's.
    """

    name: str
    arguments: str
    compiled: Any


@contextmanager
def compiled_for(
    architecture: int, left_out: Callable[[str, str], bool] = lambda name, arguments: False
) -> Iterator[list[Kernel]]:
    """Inside, launches compile for ``architecture``. The list gets each kernel once: one that differs in nothing but
    which of its arguments are divisible by 16 is not compiled again. ``left_out`` is asked once for each, by name and
    arguments as in `Kernel`, whether to leave it out."""
    kernels: list[Kernel] = []
    seen: set[tuple[str, str]] = set()
    asked: list[tuple[str, str]] = []
    launch, driver_before, hook_before = JITFunction.run, driver._active, knobs.runtime.jit_cache_hook

    def skip(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Triton asks this before each compilation: whether to leave it out."""
        one = f"{fn.module.rpartition('.')[2]}.{fn.name}", _arguments(compile)
        if one in seen:
            return True
        seen.add(one)
        if left_out(*one):
            return True
        asked.append(one)
        return False

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = launch(self, *args, grid=grid, warmup=True, **kwargs)
        while asked:
            name, arguments = asked.pop()
            kernels.append(Kernel(name=name, arguments=arguments, compiled=compiled))

    driver.set_active(_NamedDevice(architecture))
    JITFunction.run = compile_only
    knobs.runtime.jit_cache_hook = skip
    try:
        yield kernels
    finally:
        JITFunction.run = launch
        driver._active = driver_before
        knobs.runtime.jit_cache_hook = hook_before


def _arguments(specialised: dict[str, Any]) -> str:
    constants = specialised["constants"]
    words = [
        f"{name}={constants[(index,)]}" if kind == "constexpr" else f"{name}:{kind}"
        for index, (name, kind) in enumerate(specialised["signature"].items())
    ]
    return " ".join([*words, f"warps={specialised['num_warps']}"])


def registers_and_stack(compiled: Any) -> tuple[int, int] | None:
    """Registers a thread and bytes of stack (a spill, where there are no arrays), read off the machine code.

    None if there is no machine code.
    """
    cubin = compiled.asm.get("cubin")
    if not cubin:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _USAGE.search(told)
    return (int(found[1]), int(found[2])) if found else None
