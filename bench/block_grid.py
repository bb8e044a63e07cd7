"""Does a pretrained network place patches by the grid of JPEG's blocks?

Where images reach the network at the size at which JPEG compressed them, as CIFAR-10 kept as JPEG does, a patch shows
where it lies in blocks of 16 pixels, the size at which colours are coded (4:2:0). That needs neither content nor
context. Here held-out images are compressed once more, with the grid where it was and with that of the colours moved by
half a block, that of brightness staying; content stays in its place. Who does not look at the grid answers the same.

    python -m bench.block_grid --data CIFAR --from runs/selfie runs/control --out bench/results/block_grid_cpu.json
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.measure import write
from fastselfie.config import PretrainConfig, require
from fastselfie.errors import UserError
from fastselfie.evaluation.frozen import frozen_network, frozen_settings, weights_after
from fastselfie.evaluation.probe_config import ProbeConfig
from fastselfie.kernels import patch_batch
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.cifar import read_cifar10
from fastselfie.training.checkpoint import saved_steps
from fastselfie.training.world import World

GRIDS = {"where it was": (0, 0), "8 rows on": (8, 0), "8 columns on": (0, 8)}
_QUALITY, _BLOCK, _CHUNK = 75, 16, 256
_CPU = torch.device("cpu")


def compressed(image: NDArray[np.uint8], down: int, across: int) -> NDArray[np.uint8]:
    """(rows, columns, 3), multiples of 16, through JPEG at 4:2:0 with the grid's corner ``down`` rows and ``across``
    columns on; borders are mirrored beyond the image."""
    rows, columns = image.shape[:2]
    around = ((_BLOCK - down, down), (_BLOCK - across, across), (0, 0))
    file = io.BytesIO()
    Image.fromarray(np.pad(image, around, mode="reflect")).save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    top, left = _BLOCK - down, _BLOCK - across
    return np.asarray(Image.open(file))[top : top + rows, left : left + columns]


@torch.no_grad()
def accuracy(network: Selfie, run: PretrainConfig, images_SHW3: NDArray[np.uint8]) -> float:
    """Share of masked patches that are put in their place; each image's mask is the same in every call."""
    S, N, n = len(images_SHW3), run.patches, run.visible
    places_SN = torch.rand(S, N, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    mean, std = (torch.tensor(values) for values in (run.mean, run.std))
    right = torch.zeros((), dtype=torch.int64)
    for start in range(0, S, _CHUNK):
        pixels: Tensor = torch.from_numpy(images_SHW3[start : start + _CHUNK])
        places_BN = places_SN[start : start + _CHUNK]
        patches = patch_batch(
            pixels, patch=run.patch, mean=mean, std=std, dtype=torch.float32, places_BN=places_BN
        )  # fmt: skip
        right += network(patches, places_BN)[1]
    return int(right) / (S * (N - n))


def look(path: Path, images_SHW3: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Accuracies of the run at each of its checkpoints, by where the grid is.

    Raises:
        UserError: there is no such run, it sees images of another size, or it has no checkpoint.
    """
    run = frozen_settings(ProbeConfig(recipe="cifar10", pretrained=path, device="cpu", precision="fp32"), path)
    steps, size = saved_steps(path / "checkpoints"), images_SHW3.shape[1]
    require(run.image_size == size, f"--from {path}: sees {run.image_size} pixels, not {size}; name a run of cifar10")
    require(bool(steps), f"--from {path}: has no checkpoint to look at; name a run that kept its own")
    sets = {name: np.stack([compressed(image, *grid) for image in images_SHW3]) for name, grid in GRIDS.items()}
    found = []
    for step in steps:
        network = frozen_network(run, World(rank=0, size=1, device=_CPU), weights_after(path, run, step)[0])
        by_grid = {name: accuracy(network, run, images) for name, images in sets.items()}
        as_they_are = accuracy(network, run, images_SHW3)
        found.append({"run": path.name, "step": step, "as they are": as_they_are, "compressed, grid": by_grid})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: its folder or tar.gz")
    parser.add_argument("--from", dest="runs", type=Path, nargs="+", required=True, help="pretraining runs of cifar10")
    parser.add_argument("--images", type=int, default=2048, help="test images that are looked at")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    try:
        images_SHW3 = read_cifar10(arguments.data).test.images_SHW3[: arguments.images]
        looks = [one for path in arguments.runs for one in look(path, images_SHW3)]
    except (UserError, OSError) as error:
        sys.exit(f"block_grid: {error}")
    write(arguments.out, {"settings": {"images": len(images_SHW3), "quality": _QUALITY}, "looks": looks}, _CPU)
    for one in looks:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in one["compressed, grid"].items())
        print(f"{one['run']} after {one['step']} steps: {one['as they are']:.3f}; compressed once more, grid {shares}")


if __name__ == "__main__":
    main()
