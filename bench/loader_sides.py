"""The sides of the loader's bench: each gives a function that loads a round's batches and then has nothing to do.

All make random resized crops of 224 pixels, mirrored at random, from images in memory; but for ``decode``, which
decodes the same images whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.baselines.dali_example import dali_example
from bench.baselines.torch_loader import torch_loader
from bench.images_in_memory import ImagesInMemory
from bench.plain_photos import decode, training_view
from fastselfie.pipelines.decoders import DecoderName
from fastselfie.pipelines.draws import window_draws
from fastselfie.pipelines.file_pipeline import FilePipeline
from fastselfie.pipelines.gpu_decoding import GpuDecoding, gpu_decoding
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.sampler import Sampler
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.view import View

Load = Callable[[], object]
SIZE, MIN_AREA = 224, 0.08
VIEW = View(size=SIZE, grid=7, crop="resized", min_area=MIN_AREA, flip=True)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round loads: ``batches`` of ``batch`` images; ``prefetch`` of them are worked on ahead within it. Where
    FastSelfie decodes on a GPU, as ``gpu`` says."""

    batch: int
    batches: int
    threads: int
    prefetch: int
    gpu: GpuDecoding = field(default_factory=gpu_decoding)

    def requests(self) -> Iterator[list[tuple[int, int]]]:
        """Each round's entries of the stream."""
        for first in itertools.count(step=self.batches):
            yield [(self.batch * index, self.batch * (index + 1)) for index in range(first, first + self.batches)]


def fastselfie(images: EncodedImages, round: Round, device: torch.device, decoder: DecoderName) -> Load:
    """The program's own pipeline. It announces no more than a round, so nothing is decoded in others' turns."""
    loading = Loading(threads=round.threads, prefetch=round.prefetch, batch=round.batch, decoder=decoder, gpu=round.gpu)
    pipeline = FilePipeline(images, view=VIEW, seed=0, device=device, loading=loading)
    rounds = round.requests()

    def load() -> None:
        requests = next(rounds)
        pipeline.announce(requests)
        for start, stop in requests:
            pipeline.batch(start, stop)

    return load


def pillow(images: ImagesInMemory, round: Round, pool: ThreadPoolExecutor) -> Load:
    """The same views in Pillow, in a pool of threads, a batch after the other."""
    sampler = Sampler(seed=0, size=len(images), device=torch.device("cpu"))
    rounds = round.requests()

    def view(index: int, draws: list[float]) -> NDArray[np.uint8]:
        return training_view(images.data[index], SIZE, draws, MIN_AREA, flip=index % 2 == 0)

    def load() -> None:
        for start, stop in next(rounds):
            epoch_B, sample_B = sampler.samples(start, stop)
            draws = window_draws(0, epoch_B, sample_B).tolist()
            np.stack(list(pool.map(view, sample_B.tolist(), draws)))

    return load


def decode_only(images: ImagesInMemory, round: Round, pool: ThreadPoolExecutor) -> Load:
    """The same images decoded whole by Pillow's libjpeg-turbo, in a pool of threads."""
    sampler = Sampler(seed=0, size=len(images), device=torch.device("cpu"))
    rounds = round.requests()

    def load() -> None:
        for start, stop in next(rounds):
            _, sample_B = sampler.samples(start, stop)
            list(pool.map(lambda index: decode(images.data[index]).size, sample_B.tolist()))

    return load


def all_sides(
    images: ImagesInMemory, ours: EncodedImages, round: Round, device: torch.device, pool: ThreadPoolExecutor
) -> dict[str, Callable[[], Load]]:
    """What makes each side, by its name, in the order in which they take turns; FastSelfie's sides read ``ours``.

    The loader's processes are forked from this one, and so come before the threads of the others.
    """
    peer: dict[str, Any] = {"size": SIZE, "min_area": MIN_AREA, "batch": round.batch, "batches": round.batches}
    return {
        "torch DataLoader": partial(torch_loader, images.data, processes=round.threads, **peer),
        "fastselfie": partial(fastselfie, ours, round, device, "turbo" if device.type == "cpu" else "dali"),
        "fastselfie DALI": partial(fastselfie, ours, round, device, "dali"),
        "DALI example": partial(dali_example, images.data, threads=round.threads, prefetch=round.prefetch, **peer),
        "pillow": partial(pillow, images, round, pool),
        "decode": partial(decode_only, images, round, pool),
    }
