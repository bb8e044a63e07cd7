"""DALI's decoder on a GPU: which of its ways work there, and how fast each is.

With regions and without, by several shares for the hardware decoder, each as `bench.loader --alone` in a process of its
own: some versions crash. The file is written anew after each. Lines of nvImageCodec's log on its hardware decoder are
kept: where a library is missing it decodes on the CPU and fails at nothing.

    python -m bench.gpu_decoding --data FOLDER --out gpu_decoding.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.loader import OURS
from bench.measure import write
from fastselfie.pipelines.gpu_decoding import nvimagecodec_version
from fastselfie.pipelines.scene_files import write_scenes

WAYS = tuple(itertools.product(("off", "on"), (0.0, 0.65, 0.99)))
"""--region-decoding and --hardware-share."""
_LIMIT_S = 60  # a way; what hangs must not cost the ways after it
_LOG = {"DALI_NVIMGCODEC_LOG_LEVEL": "3"}
_SCENES, _SCENE_SIZE = 1000, 500


def words(data: Path, regions: str, share: float, options: Sequence[str], out: Path) -> list[str]:
    """What `bench.loader` is asked for one way."""
    ways = ["--region-decoding", regions, "--hardware-share", str(share)]
    return ["--data", str(data), "--device", "cuda", "--alone", *ways, *options, "--out", str(out)]


def attempt(command: Sequence[str], out: Path) -> dict[str, Any]:
    """The images a second that the command writes to ``out``, or how it failed; and what was logged of the decoder."""
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S, env=os.environ | _LOG
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took over {_LIMIT_S} s"}
    lines = (ended.stdout + ended.stderr).splitlines()
    log = {"log": [line for line in lines if "hw" in line.lower() or "[ERROR]" in line][:5]}
    if ended.returncode == 0:
        return log | {"images_per_second": json.loads(out.read_text())["images_per_second"][OURS]}
    status = ended.returncode
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return log | {"failed": f"{how}: {lines[-1] if lines else 'without a word'}"}


def told(tried: Sequence[dict[str, Any]]) -> str:
    """A line for each way."""
    return "\n".join(
        f"regions {way['region_decoding']:>3}, hardware share {way['hardware_share']:.2f}: "
        + (way["failed"] if "failed" in way else f"{way['images_per_second']['median']:.0f} images/s")
        for way in tried
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as of bench.loader")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=32, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"gpu_decoding: torch {torch.__version__} sees no CUDA device; `python -m bench.loader` needs none")
    options = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in ("batch_size", "batches", "rounds")]
    tried: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = given.data or Path(temporary) / "scenes"
        if given.data is None:
            write_scenes(data, size=_SCENE_SIZE, train=_SCENES, test=10, seed=0, progress=lambda done: None)
        for regions, share in WAYS:
            file = Path(temporary) / "loader.json"
            command = [sys.executable, "-m", "bench.loader", *words(data, regions, share, options, file)]
            tried.append({"region_decoding": regions, "hardware_share": share} | attempt(command, file))
            print(told(tried[-1:]), flush=True)
            result = {"settings": {"nvimagecodec": nvimagecodec_version(), "options": options}, "ways": tried}
            write(given.out, result, torch.device("cuda"))


if __name__ == "__main__":
    main()
