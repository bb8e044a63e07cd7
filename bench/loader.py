"""The loader alone: random resized crops of 224 pixels from JPEG files, by DALI and in plain Pillow, interleaved.

Files are read once before the first round, so that all sides find them in the page cache. ``pillow`` makes the same
views, ``decode`` only decodes the whole files with libjpeg-turbo, which a loader on a CPU cannot beat without region
decoding: each in a pool of --threads threads, a batch after the other. ``fastselfie`` has as many threads to decode and
as many to read, and works ahead within a round. Without --data, rendered scenes of 500 pixels a side are loaded.

    python -m bench.loader --data FOLDER --out bench/results/loader_cpu.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.measure import interleaved, summary, write
from bench.plain_photos import decode, training_view
from fastselfie.errors import UserError
from fastselfie.pipelines.decoder import require_dali
from fastselfie.pipelines.draws import window_draws
from fastselfie.pipelines.file_pipeline import FilePipeline, Loading
from fastselfie.pipelines.image_folder import read_image_folder
from fastselfie.pipelines.sampler import Sampler
from fastselfie.pipelines.scene_files import write_scenes
from fastselfie.pipelines.source import Files
from fastselfie.pipelines.view import View
from fastselfie.training.hardware import choose_device

_SIZE, _MIN_AREA, _SCENES, _SCENE_SIZE = 224, 0.08, 2000, 500


def ours(files: Files, arguments: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """One call loads a round's batches. It announces no more than those, so nothing is decoded in others' turns."""
    loading = Loading(threads=arguments.threads, prefetch=arguments.prefetch, batch=arguments.batch_size)
    view = View(size=_SIZE, grid=7, crop="resized", min_area=_MIN_AREA, flip=True)
    pipeline = FilePipeline(files, view=view, seed=0, device=device, loading=loading)
    rounds = _rounds(arguments)

    def load() -> None:
        requests = next(rounds)
        pipeline.announce(requests)
        for start, stop in requests:
            pipeline.batch(start, stop)

    return load


def pillow(files: Files, arguments: argparse.Namespace, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """One call loads the same views of the same files."""
    sampler = Sampler(seed=0, size=len(files), device=torch.device("cpu"))
    rounds = _rounds(arguments)

    def view(index: int, draws: list[float]) -> NDArray[np.uint8]:
        return training_view(files.path(index).read_bytes(), _SIZE, draws, _MIN_AREA, flip=index % 2 == 0)

    def load() -> None:
        for start, stop in next(rounds):
            epoch_B, sample_B = sampler.samples(start, stop)
            draws = window_draws(0, epoch_B, sample_B).tolist()
            np.stack(list(pool.map(view, sample_B.tolist(), draws)))

    return load


def decode_only(files: Files, arguments: argparse.Namespace, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """One call decodes the same files whole."""
    sampler = Sampler(seed=0, size=len(files), device=torch.device("cpu"))
    rounds = _rounds(arguments)

    def load() -> None:
        for start, stop in next(rounds):
            _, sample_B = sampler.samples(start, stop)
            list(pool.map(lambda index: decode(files.path(index).read_bytes()).size, sample_B.tolist()))

    return load


def _rounds(arguments: argparse.Namespace) -> Iterator[list[tuple[int, int]]]:
    """What each round asks for."""
    size, batches = arguments.batch_size, arguments.batches
    for first in itertools.count(step=batches):
        yield [(size * index, size * (index + 1)) for index in range(first, first + batches)]


def measure(files: Files, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All sides' images a second."""
    megabytes = sum(files.path(index).stat().st_size for index in range(len(files))) / 1e6
    for index in range(len(files)):
        files.path(index).read_bytes()
    with ThreadPoolExecutor(arguments.threads) as pool:
        sides = {
            "fastselfie": ours(files, arguments, device),
            "pillow": pillow(files, arguments, pool),
            "decode": decode_only(files, arguments, pool),
        }
        seconds = interleaved(sides, arguments.rounds, 1, device)
    images = arguments.batch_size * arguments.batches
    rates = {name: summary(values, images) for name, values in seconds.items()}
    return {
        "settings": {"files": len(files), "mean_kilobytes": 1e3 * megabytes / len(files), "threads": arguments.threads,
                     "prefetch": arguments.prefetch, "batch_size": arguments.batch_size,
                     "batches": arguments.batches, "device": device.type},
        "images_per_second": rates,
        "ratio_of_medians": rates["fastselfie"]["median"] / rates["pillow"]["median"],
    }  # fmt: skip


def _measured(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary) / "scenes"
        if arguments.data is None:
            write_scenes(folder, size=_SCENE_SIZE, train=_SCENES, test=10, seed=0, progress=lambda done: None)
        files = read_image_folder(folder).train
        assert isinstance(files, Files)
        return measure(files, arguments, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train/, or a flat one")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4, help="batches a side in a round")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    device = torch.device(choose_device(arguments.device).value)
    try:
        require_dali()
        result = _measured(arguments, device)
    except (UserError, OSError) as error:
        sys.exit(f"loader: {error}")
    write(arguments.out, result, device)
    for name, rate in result["images_per_second"].items():
        print(
            f"{name:12} {rate['median']:.0f} images/s (n = {rate['n']}, {rate['lowest']:.0f} to {rate['highest']:.0f})"
        )
    print(f"ratio of medians, fastselfie to pillow: {result['ratio_of_medians']:.2f}")


if __name__ == "__main__":
    main()
