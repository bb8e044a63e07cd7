"""The loader from the same photographs packed in several ways, beside its peers, all in turns in one process.

`fastselfie prepare` packs them with the options of `PACKINGS`. FastSelfie reads the shards, checksums and all, and the
others copies of the same files in memory; sides and views are those of `bench.loader`. On a CPU the C library keeps
freed memory, as in training, for all.

    python -m bench.packings --data FOLDER --out bench/results/packings_cpu.json
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.images_in_memory import read_into_memory
from bench.loader_sides import SIZE, Round, all_sides
from bench.measure import interleaved, summary, write
from fastselfie.errors import UserError
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.decoder import require_dali
from fastselfie.pipelines.image_decoding import require_turbo
from fastselfie.pipelines.prepare import open_encoded, prepare
from fastselfie.pipelines.restart_markers import require_numba
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.sources import open_source
from fastselfie.training.memory import keep_freed_memory

_LARGE = Shrinking(size=500, side="longer", quality=90)
PACKINGS = {
    "needed": _LARGE,
    "markers": dataclasses.replace(_LARGE, recode="markers"),
    "all": dataclasses.replace(_LARGE, recode="all"),
    "256": Shrinking(size=256, side="shorter", quality=95),
}
"""By the value of --recode with --size 500 --side longer --quality 90, and the defaults."""
SIDES = ("torch DataLoader", "fastselfie", "fastselfie DALI", "DALI example")
_CPU = torch.device("cpu")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images a second by packing and side, with the mean size of a file. Shards are made in ``folder``."""
    packed = {name: _packed(arguments, shrinking, folder / name) for name, shrinking in PACKINGS.items()}
    held = {name: read_into_memory(shards) for name, shards in packed.items()}
    round = Round(batch=arguments.batch_size, batches=arguments.batches, threads=arguments.threads, prefetch=2)
    with ThreadPoolExecutor(arguments.threads) as pool:
        makers = {name: all_sides(held[name], shards, round, _CPU, pool) for name, shards in packed.items()}
        # Side by side: the processes of the first are forked before there are threads.
        loads = {(name, side): makers[name][side]() for side in SIDES for name in PACKINGS}
        turns = {f"{name} {side}": loads[name, side] for name in PACKINGS for side in SIDES}
        seconds = interleaved(turns, arguments.rounds, 1, _CPU)
    images = round.batch * round.batches
    return {
        "settings": {"images": len(held["needed"]), "threads": round.threads, "prefetch": round.prefetch,
                     "batch_size": round.batch, "batches": round.batches, "device": _CPU.type},
        "mean_kilobytes": {name: images.mean_kilobytes for name, images in held.items()},
        "images_per_second": {
            name: {side: summary(seconds[f"{name} {side}"], images) for side in SIDES} for name in PACKINGS
        },
    }  # fmt: skip


def _packed(arguments: argparse.Namespace, shrinking: Shrinking, folder: Path) -> Shards:
    prepare(
        open_encoded(str(arguments.data)), folder, shrinking=shrinking, shard_bytes=512 << 20,
        workers=arguments.threads, progress=lambda done, total: None,
    )  # fmt: skip
    shards = open_source(str(folder), SIZE).train
    assert isinstance(shards, Shards)
    return shards


def table(result: dict[str, Any]) -> str:
    """A line a side, a column a packing."""
    lines = [f"{'images/s':18}" + "".join(f"{name:>24}" for name in PACKINGS)]
    lines += [f"{'kB':18}" + "".join(f"{result['mean_kilobytes'][name]:24.1f}" for name in PACKINGS)]
    for side in SIDES:
        rates = [result["images_per_second"][name][side] for name in PACKINGS]
        cells = [f"{rate['median']:.0f} ({rate['lowest']:.0f} to {rate['highest']:.0f})" for rate in rates]
        lines.append(f"{side:18}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photographs in folders")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=4, help="batches a side in a round")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    try:
        for require in (require_dali, require_turbo, require_numba):
            require()
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as folder:
            result = measure(arguments, Path(folder))
    except (UserError, OSError) as error:
        sys.exit(f"packings: {error}")
    write(arguments.out, result, _CPU)
    print(table(result))


if __name__ == "__main__":
    main()
