"""Does it cost to have many images? Start-up, memory and speed over 10^3 to 10^6 tiny JPEG images in packed shards.

The shards are made on the spot: a few hundred images of 32 pixels a side over and over, so all of them are in the page
cache. Each measurement is a process of its own, the sizes taking turns. ``open`` is from the path to the source,
``first`` from there to the first batch: what is imported is imported before. Peaks are of resident memory, mapped
files among it, when the batches are through; growth is against the fewest images. ``order`` is what a batch's entries
in the order of an epoch take by themselves, which is part of ``first``.

    python -m bench.many_images --out bench/results/many_images_cpu.json
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.measure import write
from bench.tiny_shards import SIDE, write_tiny_shards
from fastselfie.errors import UserError
from fastselfie.pipelines.decoders import choose_decoder
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.opening import open_pipeline
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.sampler import Sampler
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import View

_VIEW = View(size=SIDE, grid=4, crop="resized", min_area=0.08, flip=True)
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one process: seconds, MiB, and images a second."""

    open_s: float
    first_s: float
    order_s: float
    peak_mib: float
    images_per_second: float


def measured(folder: Path, loading: Loading, seconds: float) -> Measured:
    """Open the shards and load batches for that many seconds."""
    importlib.import_module("fastselfie.pipelines.graph")  # and with it DALI
    started = time.perf_counter()
    source = open_source(str(folder), SIDE)
    opened = time.perf_counter()
    pipeline = open_pipeline(source.train, view=_VIEW, seed=0, device=_CPU, loading=loading)
    batches = _batches(pipeline, loading.batch)
    next(batches)
    first = time.perf_counter()
    loaded, until = 0, first + seconds
    while time.perf_counter() < until:
        loaded += next(batches)
    rate = loaded / (time.perf_counter() - first)
    peak_mib = _peak_mib()
    before = time.perf_counter()
    Sampler(seed=0, size=len(source.train), device=_CPU).samples(0, loading.batch)
    return Measured(
        open_s=opened - started, first_s=first - opened, order_s=time.perf_counter() - before, peak_mib=peak_mib,
        images_per_second=rate,
    )  # fmt: skip


def _batches(pipeline: Pipeline, batch: int) -> Iterator[int]:
    """How many images each batch has, of the endless stream."""
    pipeline.announce((start, start + batch) for start in itertools.count(step=batch))
    for start in itertools.count(step=batch):
        yield len(pipeline.batch(start, start + batch).pixels)


def _peak_mib() -> float:
    """Of this process since it began: what `resource` tells begins with that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+([0-9]+) kB", status)
    assert found, "this system tells no peak of resident memory"
    return int(found[1]) / 1024


def _apart(folder: Path, loading: Loading, seconds: float) -> Measured:
    """`measured` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, folder, loading, seconds).result()


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a size: medians, and all values."""
    decoder, _ = choose_decoder("auto", _CPU)
    loading = Loading(
        threads=arguments.threads, prefetch=arguments.prefetch, batch=arguments.batch_size, decoder=decoder
    )
    with tempfile.TemporaryDirectory() as temporary:
        folders = {images: Path(temporary) / str(images) for images in arguments.images}
        for images, folder in folders.items():
            write_tiny_shards(folder, images)
        results: dict[int, list[Measured]] = {images: [] for images in folders}
        for images in itertools.islice(itertools.cycle(folders), arguments.processes * len(folders)):
            results[images].append(_apart(folders[images], loading, arguments.seconds))
    rows = [_row(images, values) for images, values in results.items()]
    return [{**row, "growth_mib": row["peak_mib"] - rows[0]["peak_mib"]} for row in rows]


def _row(images: int, values: Sequence[Measured]) -> dict[str, Any]:
    every = [asdict(value) for value in values]
    medians = {name: statistics.median(one[name] for one in every) for name in every[0]}
    return {"images": images, "n": len(every), **medians, "all": every}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="thousands of them")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="of loading, in each process")
    parser.add_argument("--processes", type=int, default=3, help="for each number of images")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    try:
        rows = measure(arguments)
    except (UserError, OSError) as error:
        sys.exit(f"many_images: {error}")
    settings = {name: getattr(arguments, name) for name in ("threads", "prefetch", "batch_size", "seconds")}
    write(arguments.out, {"settings": {**settings, "side": SIDE}, "rows": rows}, _CPU)
    print("   images  open s  first s  order s  peak MiB  growth MiB  images/s")
    for row in rows:
        print(
            f"{row['images']:9} {row['open_s']:7.3f} {row['first_s']:8.3f} {row['order_s']:8.3f} {row['peak_mib']:9.0f}"
            f" {row['growth_mib']:11.0f} {row['images_per_second']:9.0f}"
        )


if __name__ == "__main__":
    main()
