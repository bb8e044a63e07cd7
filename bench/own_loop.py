"""Batches for a training loop of one's own: normalised fp32 images of 224 pixels and their labels, by every side in
turn; random resized crops, mirrored at random.

``fastselfie`` is ``for images, labels in loader(...)``, ``fastselfie uint8`` the same without normalising; both read
--data itself. ``torch DataLoader``: Pillow in as many processes as there are --threads, which also normalise; it reads
the images from memory and hands out no labels. Each works ahead within a round only. The C library keeps memory as it
does by itself, not as it does in FastSelfie's own training.

    python -m bench.own_loop --data SHARDS --out bench/results/own_loop_cpu.json
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.baselines.torch_loader import torch_loader
from bench.images_in_memory import read_into_memory
from bench.loader_sides import MIN_AREA, SIZE
from bench.measure import interleaved, summary, told, write
from fastselfie.errors import UserError
from fastselfie.pipelines import loader
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.sources import open_source
from fastselfie.training.hardware import choose_device

SIDES = ("torch DataLoader", "fastselfie", "fastselfie uint8")


def _ours(arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    batches = loader(
        arguments.data, batch_size=arguments.batch_size, size=SIZE, min_area=MIN_AREA, dtype=dtype, device=device,
        threads=arguments.threads,
    )  # fmt: skip
    rounds = itertools.count(step=arguments.batches)

    def load() -> None:
        first = next(rounds)
        for images, labels in batches.steps(first, first + arguments.batches):
            assert (images.shape, len(labels)) == ((arguments.batch_size, 3, SIZE, SIZE), arguments.batch_size)

    return load


def measure(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Images a second of each of `SIDES`."""
    images = open_source(str(arguments.data), SIZE).train
    if not isinstance(images, EncodedImages):
        raise UserError(f"--data: {arguments.data} has images that are in memory whole; name photographs or shards")
    held = read_into_memory(images)
    peer = torch_loader(
        held.data, size=SIZE, min_area=MIN_AREA, batch=arguments.batch_size, batches=arguments.batches,
        processes=arguments.threads, normalised=True, device=device,
    )  # fmt: skip
    ours = [_ours(arguments, dtype, device) for dtype in (torch.float32, torch.uint8)]
    seconds = interleaved(dict(zip(SIDES, [peer, *ours], strict=True)), arguments.rounds, 1, device)
    rates = {side: summary(values, arguments.batch_size * arguments.batches) for side, values in seconds.items()}
    return {
        "settings": {
            "images": len(held), "mean_kilobytes": held.mean_kilobytes, "threads": arguments.threads,
            "batch_size": arguments.batch_size, "batches": arguments.batches, "device": device.type,
        },
        "images_per_second": rates,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photographs in folders, or packed shards")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=4, help="batches a side in a round")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    device = torch.device(choose_device(arguments.device).value)
    try:
        result = measure(arguments, device)
    except (UserError, OSError) as error:
        sys.exit(f"own_loop: {error}")
    write(arguments.out, result, device)
    print(told(result["images_per_second"]))


if __name__ == "__main__":
    main()
