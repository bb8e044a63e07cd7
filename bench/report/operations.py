"""The operations around the trunk in the recipe's shapes, as `bench.kernels` measures them."""

from __future__ import annotations

import argparse

import torch
from torch._functorch import config as functorch_config

from bench import kernels
from bench.kernel_cases import Case, cases
from bench.report.machine import Machine
from bench.report.rows import Row, Timing, not_run, row
from bench.report.settings import Bench
from bench.report.sides import one_line
from bench.report.whole_step import compile_lacks
from fastselfie.kernels.dispatch import lacks

_SIDES = {"kernel": "kernel", "plain": "plain PyTorch", "compiled": "compiled"}


def operations(bench: Bench, machine: Machine) -> list[Row]:
    """Forward and backward of each operation; in the recipe's own width, whatever was asked for. Bytes are those of
    one pass (`bench.kernel_cases`); a call's time is the device's."""
    config, device = bench.config, bench.device
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    found = []
    with functorch_config.patch(donated_buffer=False):  # a compiled backward may else not run twice on one graph
        for case in cases(dtype, [(config.recipe, config.batch_size)], [config.keep]):
            try:
                found += _rows(case, bench, machine)
            except Exception as error:  # such as a result that is off: a wrong kernel is not timed
                found.append(not_run(_section(case.operation, ""), case.name, one_line(error), failed=True))
    if why := lacks(device.type):
        found.append(not_run(_section("", ""), _SIDES["kernel"], f"needs {why}"))
    if why := compile_lacks(bench):
        found.append(not_run(_section("", ""), _SIDES["compiled"], why))
    return found


def _rows(case: Case, bench: Bench, machine: Machine) -> list[Row]:
    settings = argparse.Namespace(backend=bench.backend, rounds=bench.rounds, smoke=bench.smoke)
    if compile_lacks(bench):
        settings.backend = "eager"  # measured with the others, and not told
    made = []
    for measured in kernels.measure(case, bench.device, settings, machine.copy / 1e9):
        for side, values in measured["sides"].items():
            if side == "compiled" and compile_lacks(bench):
                continue
            timing = Timing(
                seconds=[ms / 1e3 for ms in values["all_ms"]], dtype=bench.config.precision,
                images=bench.config.batch_size, moved_bytes=measured["bytes"],
            )  # fmt: skip
            made.append(row(_section(case.operation, measured["direction"]), _SIDES[side], timing, machine))
    return made


def _section(operation: str, direction: str) -> str:
    return " ".join(word for word in ("operation", operation, direction) if word)
