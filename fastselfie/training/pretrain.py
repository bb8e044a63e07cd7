"""Pretraining: a source of images, the Selfie task, and the figures that show whether it learns context."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastselfie.config import PretrainConfig, require
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.rows import AllBut, Rows
from fastselfie.pipelines.source import AnySplit, Source
from fastselfie.pipelines.view import View
from fastselfie.pretext.selfie import SelfieTask, context_gap, context_gap_interval
from fastselfie.pretext.task import PixelFormat
from fastselfie.randomness import Purpose, scalar_key, shuffled
from fastselfie.training.data import fits, open_data, pipeline_over, with_decoder
from fastselfie.training.job import Evaluation, Job, micro_batch_size
from fastselfie.training.online_knn import check_labels, online_knn
from fastselfie.training.placements import IMAGES, PlacementRecorder
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.session import count_over, make_network, run, session
from fastselfie.training.starting_point import TRUNK_ALONE, StartingPoint, read_starting_point
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
        start = read_starting_point(config, config.pretrained) if config.pretrained is not None else None
        source = open_data(config, world)
        config, how = with_decoder(config, source, View.of(config, config.grid), world)
        check_labels(config, source)
        parts = divide(config, source)
        fits(config, len(parts.rows))
        job = pretraining_job(config, world, parts, start)
        summary = {
            "task": config.task, "data": source.name, "keep": config.keep, "pooler": config.pooler,
            "images": len(parts.rows), "held_out_images": len(parts.held_out_rows),
        }  # fmt: skip
        facts = {
            "images": world.in_main(source.fingerprint), "contents": world.in_main(source.probes),
            "weights": start.fingerprint if start else None,
        }  # fmt: skip
        told = parts.told(source) + how + (start.told(TRUNK_ALONE) if start else "")
        return run(job, here, command="pretrain", images=told, facts=facts, summary=summary)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which images a pretraining run learns from, and which the context gap is measured on.

    Attributes:
        train: the split that ``rows`` are of. held_out: likewise of ``held_out_rows``, int64.
    """

    train: AnySplit
    rows: Rows
    held_out: AnySplit
    held_out_rows: Tensor

    def told(self, source: Source) -> str:
        """For the user: how many images there are for what."""
        whence = "set aside, there is no val/ or test/" if self.held_out is self.train else "of its test images"
        held_out = f"{len(self.held_out_rows)} held out ({whence})" if len(self.held_out_rows) else "none held out"
        return f"data {source.name}: {len(self.rows)} images to train on, {held_out}"


def divide(config: PretrainConfig, source: Source) -> Parts:
    """Hold test images out, or where a source has none at most a tenth of its training images: the seed decides which.

    Raises:
        UserError: there are too few images to hold any out.
    """
    images = len(source.train)
    if source.test is not None or not config.held_out:
        test = source.test or source.train
        require(len(test) >= 2, f"--data: {source.name} has a single test image; two are needed, or --held-out 0")
        drawn = _drawn(config.seed, len(test), config.held_out)
        return Parts(train=source.train, rows=AllBut(images), held_out=test, held_out_rows=drawn)
    count = min(config.held_out, images // 10)
    require(
        count >= 2,
        f"--held-out {config.held_out}: {source.name} has no val/ or test/, and its {images} images are too few to"
        " set a tenth aside; add val/, or take --held-out 0 to measure no context gap",
    )
    aside = _drawn(config.seed, images, count)
    return Parts(train=source.train, rows=AllBut(images, aside), held_out=source.train, held_out_rows=aside)


def pretraining_job(config: PretrainConfig, world: World, parts: Parts, start: StartingPoint | None = None) -> Job:
    """The network, its task, and both pipelines: shuffled views to train on, plain ones to measure the context gap."""

    def make() -> Selfie:
        network = Selfie(config)
        if start is not None:
            start.load_into(network)
        return network

    network = make_network(make, config, world)
    pixels = PixelFormat.of(config, world.device)
    task = SelfieTask(config, network, pixels)
    pipeline = pipeline_over(config, world, parts.train, parts.rows, task.view, micro_batch_size(config, world))
    quarantine = Quarantine(len(parts.rows) + len(parts.held_out_rows), config.max_bad_share)
    if not config.held_out:
        return Job(config=config, task=task, pipeline=pipeline, quarantine=quarantine)
    plain = pipeline_over(
        config, world, parts.held_out, parts.held_out_rows, task.view.plain(), _EVALUATION_CHUNK
    )  # fmt: skip

    images = len(parts.held_out_rows)

    def evaluate() -> dict[str, float]:
        counts = count_over(world, plain, images, _EVALUATION_CHUNK, 5, task.context_counts, quarantine)
        return context_gap(counts) | context_gap_interval(counts)

    watch = PlacementRecorder(config.steps, lambda: next(plain.in_order([(0, IMAGES)])), task.placements)
    evaluations = [Evaluation(every=config.evaluate_every, measure=evaluate)]
    if config.knn_every:
        evaluations.append(online_knn(config, world, network, parts.train, pixels, plain, images, quarantine))
    return Job(
        config=config, task=task, pipeline=pipeline, quarantine=quarantine, evaluations=tuple(evaluations), watch=watch
    )


def _drawn(seed: int, images: int, count: int) -> Tensor:
    """``count`` of the images, or all where there are fewer: int64, more of them begin with the same ones."""
    place_K = np.arange(min(count, images))
    return torch.from_numpy(shuffled(scalar_key(seed, Purpose.HELD_OUT), place_K, images))
