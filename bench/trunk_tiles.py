"""Which tile is fastest for each product of the fused trunk: every candidate in every shape of a recipe, on a GPU.

    python -m bench.trunk_tiles --out FILE

The table that runs use is pinned in ``kernels/fused/tiles.py``: what wins here is written into it by hand, with this
result committed beside it, and never chosen while training. One candidate after the other goes through all calls, so
that what is there when time runs out is of all of them; compiling takes most of it. A candidate that does not compile
or does not fit is a row with its error. With --smoke one candidate runs, on two patches and a quarter of the width.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.measure import interleaved_ms, write
from bench.recipe_shapes import Shape, shape_of
from bench.report.sides import one_line
from fastselfie.config import ModelConfig
from fastselfie.kernels import using
from fastselfie.kernels.fused import bottleneck, tiles
from fastselfie.kernels.fused.convolution import convolution
from fastselfie.kernels.fused.convolution_backward import convolution_input, convolution_weight
from fastselfie.kernels.fused.tiles import Tile, tile_of
from fastselfie.models.convolution import channels_last
from fastselfie.models.resnet import trunk
from fastselfie.recipes import RECIPES, recipe

OPERATORS: dict[str, Any] = {"convolution": convolution, "input": convolution_input, "weight": convolution_weight}
CANDIDATES = [
    Tile(rows=64, columns=64, depth=64, warps=4, stages=3),
    Tile(rows=128, columns=64, depth=64, warps=4, stages=3),
    Tile(rows=128, columns=64, depth=64, warps=4, stages=4),
    Tile(rows=64, columns=128, depth=64, warps=4, stages=3),
    Tile(rows=128, columns=128, depth=64, warps=4, stages=3),
    Tile(rows=128, columns=128, depth=64, warps=8, stages=3),
    Tile(rows=128, columns=128, depth=64, warps=8, stages=4),
    Tile(rows=64, columns=256, depth=64, warps=8, stages=3),
    Tile(rows=128, columns=256, depth=64, warps=8, stages=3),
    Tile(rows=256, columns=128, depth=64, warps=8, stages=3),
]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an operator as a training step makes it; ``name`` says product and shapes."""

    product: str
    name: str
    arguments: tuple[Any, ...]

    @property
    def columns(self) -> int:
        """Of what it computes: the output's channels, or for a gradient the input's."""
        argument, dimension = {"convolution": (2, 0), "input": (2, 1), "weight": (1, 1)}[self.product]
        return int(self.arguments[argument].shape[dimension])

    def run(self) -> object:
        return OPERATORS[self.product](*self.arguments)


def calls(shape: Shape, width: float, patches: int, device: torch.device, dtype: torch.dtype) -> list[Call]:
    """Every distinct call of a step of the trunk on so many patches, with the arguments that it was made with."""
    network = trunk(ModelConfig(image_size=shape.H, patch=shape.P, width=width)).to(device)
    channels_last(network)
    found: dict[str, Call] = {}

    def recorded(product: str) -> Callable[..., object]:
        def call(*arguments: Any) -> object:
            sizes = ["x".join(map(str, a.shape)) if isinstance(a, torch.Tensor) else str(a) for a in arguments]
            name = f"{product} {' '.join(sizes)}"
            found.setdefault(name, Call(product=product, name=name, arguments=arguments))
            return OPERATORS[product](*arguments)

        return call

    x = torch.randn(patches, 3, shape.P, shape.P, device=device).to(dtype, memory_format=torch.channels_last)
    names = {"convolution": "convolution", "convolution_input": "input", "convolution_weight": "weight"}
    instead: dict[str, Any] = {name: recorded(product) for name, product in names.items()}
    with (
        patch.multiple(bottleneck, **instead),
        using("auto", trunk="fused"),
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        maps, _ = network.forward_stages(x)
        torch.autograd.grad(maps, list(network.parameters()), torch.randn_like(maps), allow_unused=True)
    return list(found.values())


def measure(call: Call, tile: Tile, settings: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """A row: the call's median in ms with that tile, or why it did not run."""
    row = {"product": call.product, "call": call.name, "tile": tile._asdict()}
    with pinned(call.product, tile):
        try:
            ms = interleaved_ms({"tile": call.run}, settings.rounds, 0 if settings.smoke else 5, device)["tile"]
        except Exception as error:  # whatever a compiler throws
            return row | {"error": one_line(error)}
    return row | {"median_ms": statistics.median(ms), "lowest_ms": min(ms), "highest_ms": max(ms), "n": len(ms)}


def tile_as_run(call: Call, tile: Tile, dtype: torch.dtype) -> Tile:
    """With the columns that the call leaves of it: up to 64 of them are all that a narrow product takes."""
    with pinned(call.product, tile):
        return tile_of(call.product, call.columns, dtype)


def pinned(product: str, tile: Tile) -> Any:
    """Inside, every call of that product uses ``tile``."""
    tables = {name: getattr(tiles, name) | {product: tile} for name in ("_NARROW", "_WIDE", "_REPLICATED")}
    return patch.multiple(tiles, **tables)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="imagenet224", choices=list(RECIPES))
    parser.add_argument("--batch-size", type=int, default=256, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    settings = parser.parse_args(arguments)
    if min(settings.batch_size, settings.rounds) < 1:
        print("trunk_tiles: --batch-size and --rounds must be at least 1", file=sys.stderr)
        sys.exit(2)
    if not torch.cuda.is_available() and not settings.smoke:
        print("trunk_tiles: torch sees no CUDA device; --smoke tries it without one", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    shape = shape_of(settings.recipe, batch=settings.batch_size)
    width = 0.25 if settings.smoke else recipe(settings.recipe).pretrain.width
    made = calls(shape, width, 2 if settings.smoke else shape.B * shape.N, device, dtype)
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, Tile]] = set()
    for candidate in CANDIDATES[:1] if settings.smoke else CANDIDATES:
        for call in made:
            tile = tile_as_run(call, candidate, dtype)
            if (call.name, tile) not in seen:
                seen.add((call.name, tile))
                rows.append(measure(call, tile, settings, device))
        write(settings.out, {"recipe": settings.recipe, "batch_size": settings.batch_size, "rows": rows}, device)
    for call in made:
        timed = [row for row in rows if row["call"] == call.name and "median_ms" in row]
        best = min(timed, key=lambda row: row["median_ms"], default=None)
        print(f"{call.name}: {best['median_ms']:.4f} ms with {Tile(**best['tile'])}" if best else f"{call.name}: none")


if __name__ == "__main__":
    main()
