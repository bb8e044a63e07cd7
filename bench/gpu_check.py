"""Everything that only a GPU can show, in one go: the tests marked `gpu` and every bench. ``make gpu-check OUT=DIR``.

Leaves at most eight files in the folder: a log of each part, and the benches' JSON. Goes on after a failure; the exit
status tells whether there was one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

_LIMIT_S = 240  # a part; what hangs must not cost the parts after it


def parts(out: Path) -> dict[str, list[str]]:
    """Name of each part and the command after the interpreter's name. Parts of one first word share a log."""
    step = ["-m", "bench.training_step", "--device", "cuda", "--rounds", "10", "--steps", "10", "--batch-size", "512"]
    return {
        "tests": ["-m", "pytest", "-m", "gpu", "tests"],
        "operations": ["-m", "pytest", "bench/operations.py", "--benchmark-enable", "--benchmark-only",
                       f"--benchmark-json={out / 'operations.json'}"],
        "training_step eager": [*step, "--compile", "off", "--out", str(out / "step_eager.json")],
        "training_step compiled": [*step, "--compile", "on", "--out", str(out / "step_compiled.json")],
        "loader": ["-m", "bench.loader", "--device", "cuda", "--batch-size", "256", "--batches", "8",
                   "--out", str(out / "loader.json")],
    }  # fmt: skip


def _run(command: list[str], log: Path) -> int | str:
    """The part's exit status, or that it took too long."""
    with log.open("a") as file:
        try:
            return subprocess.run(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, check=False, timeout=_LIMIT_S
            ).returncode
        except subprocess.TimeoutExpired:
            return f"took over {_LIMIT_S} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and JSON")
    out = parser.parse_args().out.resolve()
    if not torch.cuda.is_available():
        sys.exit(f"gpu-check: torch {torch.__version__} sees no CUDA device; `make test` and `make bench` need none")
    out.mkdir(parents=True, exist_ok=True)
    for log in out.glob("*.log"):
        log.unlink()
    failed = []
    for name, command in parts(out).items():
        status = _run(command, out / f"{name.split()[0]}.log")
        print(f"{name}: {'passed' if status == 0 else f'failed, {status}'}", flush=True)
        if status != 0:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}; see the logs in {out}" if failed else 0)


if __name__ == "__main__":
    main()
