"""Where the loader's time goes: microseconds an image and part, on one thread, and what is left for Python.

An image's way as the decoder of libjpeg-turbo takes it: its bytes out of one large file in the page cache, with their
checksum; its header; cutting the part around its window out of the file; decoding that, or the image down to its
window; copying the window out and resizing it; mirroring every other one. ``whole`` is that decoder itself with one
thread, reading included, batch by batch; ``rest`` is what the parts do not explain: the windows, the pool, the way from
image to image. Parts and whole take turns.

Images are as `prepare` packs them, by the options of `bench.packings`. Without --data, rendered scenes of 500 pixels a
side are taken.

    python -m bench.loader_parts --data FOLDER --out bench/results/loader_parts_cpu.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.images_in_memory import ImagesInMemory
from bench.loader_sides import MIN_AREA, SIZE, VIEW
from bench.measure import write
from bench.packings import PACKINGS
from bench.plain_photos import DRAWS
from fastselfie.errors import UserError
from fastselfie.pipelines.checksum import crc32
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_decoding import (
    ThreadMemory,
    decode_image,
    decode_window,
    require_turbo,
    usual_header,
)
from fastselfie.pipelines.image_folder import read_image_folder
from fastselfie.pipelines.jpeg_window import cut
from fastselfie.pipelines.resampling import mirror, resize_window
from fastselfie.pipelines.restart_markers import require_numba
from fastselfie.pipelines.scene_files import write_scenes
from fastselfie.pipelines.shrinking import Shrinking, make_ready
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.turbo_decoder import TurboDecoder
from fastselfie.pipelines.window_numpy import random_windows
from fastselfie.training.memory import keep_freed_memory

PARTS = ("reading and checksum", "header", "cutting", "decode", "window copied and resized", "mirrored")
_CPU, _BATCH, _SCENES, _SCENE_SIZE = torch.device("cpu"), 128, 600, 500


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Images one after another in an open file, with where each lies and its checksum; what is drawn for each."""

    file: int
    places: list[tuple[int, int, int]]
    draws: NDArray[np.float64]
    flips: NDArray[np.int32]

    def read(self, index: int) -> NDArray[np.uint8]:
        """One image's bytes."""
        offset, size, checksum = self.places[index]
        data = os.pread(self.file, size, offset)
        assert crc32(data) == checksum
        return np.frombuffer(data, dtype=np.uint8)


@contextmanager
def packed(images: ImagesInMemory) -> Iterator[Packed]:
    """``images`` in a file."""
    generator, count = np.random.default_rng(0), len(images)
    ends = itertools.accumulate(map(len, images.data))
    places = [(end - len(data), len(data), crc32(data)) for end, data in zip(ends, images.data, strict=True)]
    with tempfile.TemporaryFile() as file:
        file.writelines(images.data)
        file.flush()
        draws, flips = generator.random((count, DRAWS)), np.arange(count, dtype=np.int32) % 2
        yield Packed(file=file.fileno(), places=places, draws=draws, flips=flips)


def part_seconds(images: Packed) -> list[float]:
    """Seconds of each of `PARTS`, all images together. Raises `BadImage` for one that cannot be decoded."""
    memory, clock, spent = ThreadMemory(), time.perf_counter, [0.0] * len(PARTS)
    out_HH3 = np.empty((SIZE, SIZE, 3), np.uint8)
    for index in range(len(images.places)):
        times = [clock()]
        data = images.read(index)
        times.append(clock())
        header = usual_header(data)
        times.append(clock())
        shape_B2 = np.array([header.turned_shape if header else decode_image(data, None, memory).shape[:2]])
        row, column, height, width = random_windows(shape_B2, images.draws[index : index + 1], MIN_AREA)[0].tolist()
        window = row, column, height, width
        before = clock()
        if header and header.orientation == 1:
            cut(data, header, window)
        cutting = clock() - before
        times.append(times[-1] + cutting)
        before = clock()
        if header:  # which cuts it again
            image = decode_window(data, header, window, memory)
        else:
            image = decode_image(data, None, memory)[row : row + height, column : column + width]
        times.append(times[-1] + clock() - before - cutting)
        before = clock()
        part, view = memory.contiguous(image), memory.view(SIZE)
        resize_window(part, view if images.flips[index] else out_HH3)
        times.append(times[-1] + clock() - before)
        before = clock()
        if images.flips[index]:
            mirror(view, out_HH3)
        times.append(times[-1] + clock() - before)
        spent = [total + end - start for total, (start, end) in zip(spent, itertools.pairwise(times), strict=True)]
    return spent


def whole_seconds(images: Packed, decoder: TurboDecoder) -> float:
    """Seconds of the same work by the decoder itself."""
    started, count = time.perf_counter(), len(images.places)
    for first in range(0, count, _BATCH):
        some = slice(first, min(first + _BATCH, count))
        data = [images.read(index) for index in range(some.start, some.stop)]
        decoder.schedule(Encoded(data=data, draws=images.draws[some], flip=images.flips[some]))
        decoder.take()
    return time.perf_counter() - started


def measure(images: ImagesInMemory, rounds: int) -> dict[str, Any]:
    """Microseconds an image: medians of ``rounds``, and every round's."""
    decoder = TurboDecoder(VIEW, batch=_BATCH, threads=1)
    with packed(images) as held:
        steps: list[Callable[[], Any]] = [lambda: part_seconds(held), lambda: whole_seconds(held, decoder)]
        for step in steps:  # a warm-up, not counted
            step()
        told = [[step() for step in steps] for _ in range(rounds)]
    to_us = 1e6 / len(images)
    every: dict[str, list[float]] = {name: [parts[at] * to_us for parts, _ in told] for at, name in enumerate(PARTS)}
    every["rest"] = [(whole - sum(parts)) * to_us for parts, whole in told]
    every["whole"] = [whole * to_us for _, whole in told]
    return {
        "images": len(images), "mean_kilobytes": images.mean_kilobytes,
        "microseconds": {name: statistics.median(values) for name, values in every.items()}, "all": every,
    }  # fmt: skip


def _ready(files: EncodedImages, shrinking: Shrinking) -> ImagesInMemory:
    data = tuple(make_ready(files.read(index), shrinking)[0] for index in range(len(files)))
    return ImagesInMemory(data=data, labels_S=np.asarray(files.labels_S))


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line a part, a column a size."""
    lines = [f"{'microseconds an image':26}" + "".join(f"{name:>18}" for name in results)]
    for part in (*PARTS, "rest", "whole"):
        lines.append(f"{part:26}" + "".join(f"{result['microseconds'][part]:18.1f}" for result in results.values()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train/, or a flat one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    try:
        require_turbo()
        require_numba()
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.data or Path(temporary) / "scenes"
            if arguments.data is None:
                write_scenes(folder, size=_SCENE_SIZE, train=_SCENES, test=10, seed=0, progress=lambda done: None)
            files = read_image_folder(folder).train
            assert isinstance(files, EncodedImages)
            results = {
                name: measure(_ready(files, shrinking), arguments.rounds) for name, shrinking in PACKINGS.items()
            }
    except (UserError, OSError) as error:
        sys.exit(f"loader_parts: {error}")
    write(arguments.out, {"threads": 1, "sizes": results}, _CPU)
    print(table(results))


if __name__ == "__main__":
    main()
