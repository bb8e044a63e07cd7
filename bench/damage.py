"""Damaged JPEG files: how many does a decoder refuse, and how many does it decode to other pixels without a word?

    python -m bench.damage --data FOLDER --out bench/results/damage_cpu.json

Checksums tell every damage (packed shards, TFRecord). Of plain files the decoder alone tells: what this bench counts.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.measure import write
from fastselfie.errors import UserError
from fastselfie.pipelines.decoders import DecoderName, make_decoder
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_bytes import fault
from fastselfie.pipelines.image_folder import read_image_folder
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import View

Damage = Callable[[bytes, np.random.Generator], bytes]
_CPU, _SIZE = torch.device("cpu"), 64
_DECODERS: tuple[DecoderName, ...] = ("turbo", "dali")


def flipped(data: bytes, generator: np.random.Generator) -> bytes:
    """One bit is another."""
    at, bit = int(generator.integers(len(data))), int(generator.integers(8))
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def truncated(data: bytes, generator: np.random.Generator) -> bytes:
    """The end is missing."""
    return data[: int(generator.integers(1, len(data)))]


def zeroed(data: bytes, generator: np.random.Generator) -> bytes:
    """A quarter is zeros, as where a block was never written."""
    size = len(data) // 4
    at = int(generator.integers(len(data) - size))
    return data[:at] + bytes(size) + data[at + size :]


def emptied(data: bytes, generator: np.random.Generator) -> bytes:
    """Nothing is left."""
    return b""


DAMAGES: dict[str, Damage] = {"flipped": flipped, "truncated": truncated, "zeroed": zeroed, "emptied": emptied}


def outcomes(files: list[bytes], name: DecoderName, damage: Damage) -> Counter[str]:
    """How many of the damaged files are refused, decode to the same pixels, or to others; of the plain view."""
    generator, counts = np.random.default_rng(0), Counter[str]()
    for data in files:
        spoilt = damage(data, generator)
        seen = None if fault(spoilt) else _decoded(spoilt, name)
        if seen is None:
            counts["refused"] += 1
        else:
            good = _decoded(data, name)
            counts["same" if good is not None and torch.equal(seen, good) else "silent"] += 1
    return counts


def _decoded(data: bytes, name: DecoderName) -> Tensor | None:
    """The view's pixels; None where the decoder refuses."""
    decoder = make_decoder(name, View(size=_SIZE), batch=1, threads=1, device=_CPU, depth=1)
    encoded: list[NDArray[np.uint8]] = [np.frombuffer(data, dtype=np.uint8)]
    decoder.schedule(Encoded(data=encoded))
    try:
        return decoder.take()
    except Undecodable:
        return None


def measure(files: list[bytes]) -> dict[str, Any]:
    """Shares by decoder and kind of damage."""
    found = {
        name: {kind: outcomes(files, name, damage) for kind, damage in DAMAGES.items()} for name in _DECODERS
    }  # fmt: skip
    shares = {
        name: {kind: {what: counts[what] / len(files) for what in ("refused", "same", "silent")}
               for kind, counts in kinds.items()}
        for name, kinds in found.items()
    }  # fmt: skip
    return {"settings": {"files": len(files), "size": _SIZE}, "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/, or a flat one")
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    try:
        images = read_image_folder(arguments.data).train
        assert isinstance(images, EncodedImages)
        files = [images.read(index) for index in range(min(arguments.files, len(images)))]
        result = measure(files)
    except (UserError, OSError) as error:
        sys.exit(f"damage: {error}")
    write(arguments.out, result, _CPU)
    for name, kinds in result["shares"].items():
        for kind, shares in kinds.items():
            print(f"{name:6} {kind:10} " + ", ".join(f"{what} {share:.1%}" for what, share in shares.items()))


if __name__ == "__main__":
    main()
