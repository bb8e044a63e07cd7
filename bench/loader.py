"""The loader alone: random resized crops of 224 pixels from JPEG images in memory, by every side in turn.

``fastselfie`` is the program's pipeline with the decoder of libjpeg-turbo, ``fastselfie DALI`` with DALI's graph, which
is the only one on a GPU and goes by the first name there. Its peers: ``torch DataLoader``, Pillow in as many processes
as there are --threads; ``DALI example``, DALI's own pipeline for ResNet-50; ``pillow``, the same views in a pool of
threads. ``decode`` only decodes the whole images. Sides have as many threads or processes to decode; FastSelfie also as
many threads to read. Each works ahead within a round only.

Images are read into memory before the first round; with --shrink copies that are made smaller first. Of packed shards
FastSelfie reads the shards themselves, checksums and all, and the others copies in memory. Without --data,
rendered scenes of 500 pixels a side are loaded. On a CPU the C library keeps freed memory, as in training, for all.

    python -m bench.loader --data FOLDER --out loader_cpu.json
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.images_in_memory import SHRINKS, ImagesInMemory, read_into_memory
from bench.loader_sides import SIZE, Round, all_sides
from bench.measure import interleaved, summary, told, write
from fastselfie.errors import UserError
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.decoder import require_dali
from fastselfie.pipelines.gpu_decoding import HARDWARE_SHARE, gpu_decoding
from fastselfie.pipelines.image_decoding import require_turbo
from fastselfie.pipelines.scene_files import write_scenes
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.sources import open_source
from fastselfie.training.hardware import choose_device
from fastselfie.training.memory import keep_freed_memory

OURS = "fastselfie"
REPORTED = (OURS, "pillow", "decode")
"""The sides that `bench.report` has rows of, and that there are on a GPU."""
ALL = ("torch DataLoader", OURS, "fastselfie DALI", "DALI example", "pillow", "decode")
_SCENES, _SCENE_SIZE = 2000, 500


def measure(
    images: EncodedImages, round: Round, rounds: int, device: torch.device, sides: Sequence[str] = REPORTED
) -> dict[str, Any]:
    """Images a second of each of ``sides``."""
    held = images if isinstance(images, ImagesInMemory) else read_into_memory(images)
    ours = images if isinstance(images, Shards) else held
    with ThreadPoolExecutor(round.threads) as pool:
        makers = all_sides(held, ours, round, device, pool)
        loads = {side: make() for side, make in makers.items() if side in sides}
        seconds = interleaved(loads, rounds, 1, device)
    rates = {name: summary(values, round.batch * round.batches) for name, values in seconds.items()}
    return {
        "settings": {"images": len(held), "mean_kilobytes": held.mean_kilobytes, "threads": round.threads,
                     "prefetch": round.prefetch, "batch_size": round.batch, "batches": round.batches,
                     "device": device.type, "from": "packed shards" if ours is not held else "memory",
                     **(dataclasses.asdict(round.gpu) if device.type == "cuda" else {})},
        "images_per_second": rates,
    }  # fmt: skip


def ratios(rates: dict[str, Any]) -> dict[str, float]:
    """Our median to each other side's."""
    return {name: rates[OURS]["median"] / rate["median"] for name, rate in rates.items() if name != OURS}


def _measured(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary) / "scenes"
        if arguments.data is None:
            write_scenes(folder, size=_SCENE_SIZE, train=_SCENES, test=10, seed=0, progress=lambda done: None)
        images = open_source(str(folder), SIZE).train
        if not isinstance(images, EncodedImages):
            raise UserError(f"--data: {folder} has images that are in memory whole; name photographs or packed shards")
        if arguments.shrink:
            images = read_into_memory(images, arguments.shrink)
    round = Round(
        batch=arguments.batch_size, batches=arguments.batches, threads=arguments.threads, prefetch=arguments.prefetch,
        gpu=gpu_decoding(arguments.region_decoding, arguments.hardware_share),
    )  # fmt: skip
    sides = [OURS] if arguments.alone else ALL if device.type == "cpu" else REPORTED
    result = measure(images, round, arguments.rounds, device, sides)
    result["settings"]["shrunk"] = SHRINKS[arguments.shrink]
    result["ratio_of_medians"] = ratios(result["images_per_second"])
    return result


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train/, or a flat one")
    parser.add_argument("--shrink", type=int, default=0, choices=SHRINKS, help="make images smaller first")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4, help="batches a side in a round")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--hardware-share", type=float, default=HARDWARE_SHARE, help="as of pretrain; on a GPU")
    parser.add_argument("--region-decoding", default="auto", choices=("auto", "on", "off"), help="likewise")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    device = torch.device(choose_device(arguments.device).value)
    asked = arguments.hardware_share, arguments.region_decoding
    try:
        if device.type == "cpu" and asked != (HARDWARE_SHARE, "auto"):
            raise UserError("--hardware-share, --region-decoding: are for a GPU; leave them out")
        require_dali()
        if device.type == "cpu":
            require_turbo()
            keep_freed_memory()
        result = _measured(arguments, device)
    except (UserError, OSError) as error:
        sys.exit(f"loader: {error}")
    write(arguments.out, result, device)
    print(told(result["images_per_second"]))
    for name, ratio in result["ratio_of_medians"].items():
        print(f"{ratio:.2f} times {name}")


if __name__ == "__main__":
    main()
