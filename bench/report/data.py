"""JPEG files: the loader alone, and training from it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast

from bench import loader
from bench.loader_sides import Round
from bench.measure import interleaved, wait
from bench.report.device_time import busy_s
from bench.report.machine import Machine
from bench.report.rows import Row, Timing, row
from bench.report.settings import Bench
from bench.report.sides import held
from bench.report.whole_step import EAGER
from bench.training_step import make_trainer, steps_of
from fastselfie.config import require
from fastselfie.errors import UserError
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.decoder import require_dali
from fastselfie.pipelines.decoders import choose_decoder
from fastselfie.pipelines.scene_files import write_scenes
from fastselfie.pipelines.source import EncodedImages, Source
from fastselfie.pipelines.sources import open_source
from fastselfie.training.data import fits
from fastselfie.training.world import World

LOADER, END_TO_END = "loader alone", "end to end"
OURS = "fastselfie"
_SCENES, _SCENE_SIZE, _SMOKE_SCENES, _SMOKE_SIZE = 512, 500, 16, 64
_LOADED, _SMOKE_LOADED = 128, 8  # images a batch of the loader alone


def dali_lacks() -> str:
    """Why no file can be loaded; empty where they can."""
    try:
        require_dali()
    except UserError as error:
        return str(error)
    return ""


@contextmanager
def opened(bench: Bench, folder: Path | None) -> Iterator[Source]:
    """The images of ``folder``, or rendered scenes.

    Raises:
        UserError: there are no JPEG or PNG files in it, or fewer than a batch.
    """
    with TemporaryDirectory() as temporary:
        if folder is None:
            count, size = (_SMOKE_SCENES, _SMOKE_SIZE) if bench.smoke else (_SCENES, _SCENE_SIZE)
            count, scenes = max(count, bench.config.batch_size), Path(temporary) / "scenes"
            write_scenes(scenes, size=size, train=count, test=10, seed=0, progress=lambda done: None)
        source = open_source(str(folder or scenes), bench.config.image_size)
        require(
            isinstance(source.train, EncodedImages), f"--data: {folder} holds no photographs; name a folder of them"
        )
        if folder is not None:
            fits(bench.config, len(source.train))
        yield source


def loader_alone(bench: Bench, machine: Machine, source: Source) -> list[Row]:
    """Random resized crops of 224 pixels, against Pillow making the same and against decoding the files whole."""
    assert isinstance(source.train, EncodedImages)
    # A round begins with nothing ahead, which for a GPU is a larger part of a batch's time.
    batches = 1 if bench.smoke else 2 if bench.device.type == "cpu" else 16
    round = Round(batch=_SMOKE_LOADED if bench.smoke else _LOADED, batches=batches, threads=cores(), prefetch=2)
    rates = loader.measure(source.train, round, bench.rounds, bench.device)["images_per_second"]
    seconds = {side: [round.batch / value for value in rate["all"]] for side, rate in rates.items()}
    rows = []
    for side, values in seconds.items():
        # Files are decoded whole by threads of the CPU: no ceiling for a GPU that decodes.
        comparable = bench.device.type == "cpu" or side != OURS
        share = statistics.median(seconds["decode"]) / statistics.median(values) if comparable else None
        timing = Timing(seconds=values, images=round.batch, decoder=share)
        rows.append(row(LOADER, side, timing, machine))
    return rows


def end_to_end(bench: Bench, machine: Machine, source: Source, flops: int | None) -> list[Row]:
    """Training the recipe's network from random resized crops of the files, as the training loop does it.

    Args:
        flops: a step's, counted in the whole step: its network and batch are the same.
    """
    decoder, _ = choose_decoder(bench.config.decoder, bench.device)
    config = replace(bench.config, crop="resized", pad=0, decoder=decoder)
    trainer = make_trainer(config, World(rank=0, size=1, device=bench.device), source)
    trainer.job.pipeline.announce(trainer.requests(0))
    started = time.perf_counter()
    trunk = cast(Literal["fused", "plain"], config.trunk)
    step = held(steps_of(trainer), "on" if config.kernels == "on" else "off", trunk)
    step()
    wait(bench.device)
    startup_s = time.perf_counter() - started
    step()
    wait(bench.device)
    steps = max(1, math.ceil(bench.round_s / max(1e-4, time.perf_counter() - started - startup_s)))
    trainer.throughput.restart()
    seconds = interleaved({"": step}, bench.rounds, steps, bench.device)[""]
    waiting, busy = trainer.throughput.take()["data_wait"], busy_s(step, bench.device)
    if busy is not None:  # the host may wait for files while the device has work: that costs nothing
        waiting = min(waiting, max(0.0, 1 - busy / statistics.median(seconds)))
    timing = Timing(
        seconds=seconds, startup_s=startup_s, dtype=config.precision, images=config.batch_size, flops=flops,
        busy_s=busy, decode=waiting, counted_as=EAGER,
    )  # fmt: skip
    return [row(END_TO_END, "from JPEG files", timing, machine)]
