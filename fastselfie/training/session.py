"""What every run does before and after its training loop: resolve, refuse, claim the folder, train, close."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fastselfie.config import RunConfig, require
from fastselfie.errors import LocalError
from fastselfie.files import replace_bytes, replace_json
from fastselfie.kernels import using
from fastselfie.kernels.dispatch import Norm, Trunk
from fastselfie.models.convolution import channels_last
from fastselfie.models.statistics import synchronised
from fastselfie.models.weights import to_safetensors
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.view import Batch
from fastselfie.randomness import Purpose, scalar_key
from fastselfie.training import hardware
from fastselfie.training.determinism import determinism
from fastselfie.training.job import Job, micro_batch_size
from fastselfie.training.loop import train
from fastselfie.training.memory import keep_freed_memory
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.reporter import say
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.versions import versions
from fastselfie.training.world import World, join_world

C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=nn.Module)
ENCODER = "encoder.safetensors"
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Session(Generic[C]):
    """What a run has to work with.

    Attributes:
        config: with every ``auto`` resolved. world: the processes that train. used: a line on what was chosen and why.
    """

    config: C
    world: World
    used: str


@contextmanager
def session(config: C) -> Iterator[Session[C]]:
    """Resolve a configuration and join the processes that train.

    Raises:
        UserError: the machine cannot do what is asked, or the batch does not divide among the processes.
    """
    device = hardware.choose_device(config.device)
    choices = hardware.resolve(config, device.value)
    # Left to `auto`, the dispatch still excepts shapes; resolved to `off`, there is nothing to except.
    kernels = "off" if choices["kernels"].value == "off" else config.kernels
    trunk: Trunk = "fused" if choices["trunk"].value == "fused" else "plain"
    norm: Norm = "numba" if choices["norm"].value == "numba" else "torch"
    with determinism(config.deterministic), join_world(device.value) as world, using(kernels, trunk, norm):
        require(
            config.batch_size % world.size == 0,
            f"--batch-size {config.batch_size}: must be a multiple of the {world.size} processes",
        )
        share = config.batch_size // world.size
        require(
            share % micro_batch_size(config, world) == 0,
            f"--micro-batch-size {config.micro_batch_size}: must divide a process's share of {share} images",
        )
        if device.value == "cpu" and (allocator := keep_freed_memory()):
            choices["allocator"] = allocator
        used = "using " + ", ".join(f"{name} {c.value} ({c.why})" for name, c in choices.items())
        config = hardware.resolved(config, choices)
        hardware.set_convolutions(config)
        try:
            yield Session(config=config, world=world, used=used)
        except torch.OutOfMemoryError:
            raise LocalError(
                f"--batch-size {config.batch_size}: a process's share does not fit into the device's memory;"
                " accumulate gradients over a smaller --micro-batch-size, or take another --out and a smaller batch"
            ) from None


def make_network(make: Callable[[], M], config: RunConfig, world: World) -> M:
    """A network with the initial weights that the seed decides, whatever the device, channels-last on the device."""
    network = seeded(make, config.seed)
    if config.sync_bn:
        network = synchronised(network)
    network.to(world.device)
    channels_last(network)
    return network


def seeded(make: Callable[[], M], seed: int) -> M:
    """What ``make`` makes with the initial weights of ``seed``. The generator of the CPU, which they are drawn from, is
    left wherever that took it."""
    torch.manual_seed(scalar_key(seed, Purpose.INIT))
    return make()


def turns(world: World, images: int, chunk: int) -> list[tuple[int, int]]:
    """This process's chunks [start, stop) of ``images``, at most ``chunk`` long: processes take turns at them.

    They are of nearly equal size, so none is left with a single image.
    """
    chunks = -(-images // chunk)
    edges = [images * index // chunks for index in range(chunks + 1)]
    return [(edges[index], edges[index + 1]) for index in range(world.rank, chunks, world.size)]


def count_over(
    world: World, pipeline: Pipeline, images: int, chunk: int, values: int, count: Callable[[Batch], Tensor],
    quarantine: Quarantine,
) -> Tensor:  # fmt: skip
    """Sum ``count(batch)``, int64 (values,), over the first ``images`` of a pipeline, at most ``chunk`` at a time.

    Images that cannot be used are left out and noted in ``quarantine``.
    """
    total = torch.zeros(values, dtype=torch.int64, device=world.device)
    for batch in pipeline.in_order(turns(world, images, chunk)):
        quarantine.note(batch.refused)
        if len(batch.sample_B):
            total += count(batch)
    return world.sum_(total)


def run(
    job: Job, session: Session[Any], *, command: str, images: str, facts: dict[str, Any], summary: dict[str, Any],
    prepare: Callable[[Path], None] = lambda folder: None,
) -> Path:  # fmt: skip
    """Claim the run's folder, train, and write ``encoder.safetensors`` and ``result.json``; or say that this is done.

    Args:
        images: says to the user what is trained and tested on. facts: see `RunFolder.claim`. summary: what
            ``result.json`` says beside the last figures. prepare: writes what else belongs into the folder.
    """
    config, world = job.config, session.world
    assert config.out is not None
    folder = RunFolder(config.out)
    world.in_main(lambda: folder.claim(config, command, facts))
    if world.in_main((folder.path / RESULT).exists):
        if world.is_main:
            say(f"{folder.path}: already done, {config.steps} steps; its figures are in {RESULT}")
        return folder.path
    world.in_main(folder.check_stream)
    with folder.locked(world):
        world.in_main(lambda: prepare(folder.path))
        train(job, world, folder, f"{images}\n{session.used}")
        world.in_main(lambda: _close(job, folder, summary))
    return folder.path


def _close(job: Job, folder: RunFolder, summary: dict[str, Any]) -> None:
    replace_bytes(folder.path / ENCODER, to_safetensors(job.task.network.state_dict()))
    result = summary | folder.last_metrics() | {"seed": job.config.seed, "made_by": versions()}
    replace_json(folder.path / RESULT, result)
    say(f"{folder.path}: done, {job.config.steps} steps")
