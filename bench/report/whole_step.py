"""The whole training step: FastSelfie's sides and the peers of `bench.baselines`."""

from __future__ import annotations

from dataclasses import replace

from bench.baselines import steps as peers
from bench.report.machine import Machine, bf16_lacks
from bench.report.rows import Row
from bench.report.settings import Bench
from bench.report.sides import Side, Step, measure
from bench.training_step import resident_trainer, scenes, steps_of
from fastselfie.errors import UserError
from fastselfie.training import wrapping
from fastselfie.training.hardware import choose_compile, choose_kernels, choose_trunk
from fastselfie.training.trainer import Trainer
from fastselfie.training.world import World

SECTION = "whole step"
EAGER, COMPILED, FUSED = "fastselfie eager", "fastselfie compiled", "fastselfie fused"
COMPILED_FUSED = "fastselfie compiled + fused"
FUSED_TRUNK = "fastselfie compiled + fused + trunk"
PLAIN, CHANNELS_LAST, COMPILED_PLAIN = "eager fp32 NCHW", "eager bf16 channels-last", "compiled bf16 channels-last"
PER_PATCH = "per-patch loop fp32 NCHW"


def whole_step(bench: Bench, machine: Machine) -> tuple[list[Row], dict[str, Step]]:
    """Rows and steps of all sides, those that cannot run among the rows."""
    scenes(bench.config)
    return measure(SECTION, [*ours(bench), *theirs(bench)], bench, machine, images=bench.config.batch_size)


def ours(bench: Bench) -> list[Side]:
    """FastSelfie's own training loop on resident images: eager, compiled, with kernels around the trunk, with both, and
    with the trunk as kernels too."""
    slow, fast = compile_lacks(bench), kernels_lack(bench)
    dtype = bench.config.precision
    return [
        Side(name=EAGER, dtype=dtype, build=lambda: steps_of(trainer(bench))),
        Side(name=COMPILED, dtype=dtype, build=lambda: compiled(bench), lacks=slow, counted_as=EAGER),
        Side(name=FUSED, dtype=dtype, build=lambda: steps_of(trainer(bench)), lacks=fast, kernels="on"),
        Side(
            name=COMPILED_FUSED, dtype=dtype, build=lambda: compiled(bench), lacks=fast or slow, counted_as=EAGER,
            kernels="on",
        ),
        Side(
            name=FUSED_TRUNK, dtype=dtype, build=lambda: compiled(bench), lacks=trunk_lacks(bench), counted_as=EAGER,
            kernels="on", trunk="fused",
        ),
    ]  # fmt: skip


def theirs(bench: Bench) -> list[Side]:
    """The peers. The paper's fp32 and bf16 whatever our own precision is."""
    config, device = bench.config, bench.device
    bf16 = bf16_lacks(device)
    return [
        Side(name=PLAIN, dtype="fp32", build=lambda: peers.eager_fp32(config, device)),
        Side(name=CHANNELS_LAST, dtype="bf16", build=lambda: peers.eager_bf16(config, device), lacks=bf16),
        Side(
            name=COMPILED_PLAIN, dtype="bf16", build=lambda: peers.compiled_bf16(config, device, bench.backend),
            lacks=bf16 or compile_lacks(bench), counted_as=CHANNELS_LAST,
        ),
        Side(name=PER_PATCH, dtype="fp32", build=lambda: peers.per_patch(config, device)),
    ]  # fmt: skip


def trainer(bench: Bench) -> Trainer:
    """The eager training loop, alone on its device."""
    config = replace(bench.config, compile="off")
    return resident_trainer(config, World(rank=0, size=1, device=bench.device))


def compiled(bench: Bench) -> Step:
    """The training loop's step with its network compiled, as ``--compile on`` does."""
    made = trainer(bench)
    made.forward = wrapping.compiled(made.network, bench.device.type, bench.backend)
    return steps_of(made)


def compile_lacks(bench: Bench) -> str:
    """Why nothing can be compiled here; empty where it can."""
    try:
        choose_compile("on", bench.device.type)
    except UserError as error:
        return str(error)
    return ""


def trunk_lacks(bench: Bench) -> str:
    """Why the compiled network with all kernels cannot run here; empty where it can."""
    if why := kernels_lack(bench) or compile_lacks(bench):
        return why
    try:
        choose_trunk("fused", bench.device.type, bench.config.precision, bench.config.width, "on")
    except UserError as error:
        return str(error)
    return ""


def kernels_lack(bench: Bench) -> str:
    """Why the kernels cannot run here; empty where they can. Interpreted ones are no measurement."""
    if bench.device.type != "cuda":
        return "the kernels run on a CUDA device"
    try:
        choose_kernels("on", bench.device.type, bench.config.patches)
    except UserError as error:
        return str(error)
    return ""
