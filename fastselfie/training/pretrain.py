"""Pretraining: a source of images, the Selfie task, and the figures that show whether it learns context."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from fastselfie.config import PretrainConfig
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.source import Source
from fastselfie.pretext.selfie import SelfieTask, context_gap
from fastselfie.pretext.task import PixelFormat
from fastselfie.randomness import Purpose, random_bits
from fastselfie.training.loop import Job
from fastselfie.training.session import count_over, fits, make_network, open_data, run, session
from fastselfie.training.world import World

_EVALUATION_CHUNK = 256


def pretrain(config: PretrainConfig) -> Path:
    """Pretrain, or go on with a half-done run.

    Returns:
        The run's folder.

    Raises:
        UserError: see `fastselfie.errors`. Stopped: a signal ended the run; its state is saved.
    """
    out = config.out or Path("runs") / f"{config.recipe}-pretrain"
    with session(dataclasses.replace(config, out=out)) as here:
        config, world = here.config, here.world
        source = open_data(config, world)
        fits(config, len(source.train))
        job = pretraining_job(config, world, source)
        summary = {"task": config.task, "data": source.name, "keep": config.keep, "pooler": config.pooler}
        return run(job, here, command="pretrain", facts={"images": source.fingerprint()}, summary=summary)


def pretraining_job(config: PretrainConfig, world: World, source: Source) -> Job:
    """The network, its task, and both pipelines: shuffled views to train on, plain ones to measure the context gap."""
    network: Selfie = make_network(lambda: Selfie(config), config, world)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    task = SelfieTask(config, network, PixelFormat.of(config, world.device, dtype))
    pipeline = ResidentPipeline(source.train, view=task.view, seed=config.seed, device=world.device)
    held_out = held_out_rows(config, len(source.test))
    plain = ResidentPipeline(source.test, view=task.view, seed=config.seed, device=world.device, rows=held_out)

    def evaluate() -> dict[str, float]:
        def counts(start: int, stop: int) -> torch.Tensor:
            return task.context_counts(plain.in_order(start, stop))

        return context_gap(count_over(world, len(held_out), _EVALUATION_CHUNK, 3, counts))

    return Job(config=config, task=task, pipeline=pipeline, evaluate=evaluate)


def held_out_rows(config: PretrainConfig, images: int) -> torch.Tensor:
    """Which of ``images`` test images the context gap is measured on: int64, at most ``config.held_out``."""
    sample_S = torch.arange(images)
    bits = random_bits(config.seed, Purpose.HELD_OUT, torch.zeros_like(sample_S), sample_S, 1)[:, 0]
    return bits.argsort(stable=True)[: config.held_out]
