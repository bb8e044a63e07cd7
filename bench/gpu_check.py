"""Everything that only a GPU can show, in one go: the tests marked `gpu` and every bench. ``make gpu-check OUT=DIR``.

Leaves at most eight files in the folder, a log of everything and what the benches write; and the resource tables of a
Triton that has none yet. Goes on after a failure; the exit status tells whether there was one.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from fastselfie.kernels.dispatch import triton_version

_ROOT = Path(__file__).parent.parent
LOG = "gpu-check.log"
_LIMIT_S = 580  # a part, and with --seconds all together; what hangs must not cost the parts after it
_TOLD_WITHIN_S = 15  # pytest tells what failed at its end, and when it is interrupted
_DONE_APART = ("kernels_take_what_is_recorded", "the_trunk_takes_what_is_recorded")  # by "resources"
_HAS_XDIST = importlib.util.find_spec("xdist") is not None
_SIDE_BY_SIDE = ("-n", "4") if _HAS_XDIST else ()
# A test that ends its process costs itself alone; by files it would be begun again and again.
_IN_PARALLEL = ("-n", "8", "--dist", "worksteal") if _HAS_XDIST else ()


def parts(out: Path) -> dict[str, list[str]]:
    """Name of each part and the command after the interpreter's name."""
    return {
        # By name as they end: where they take too long the log tells which did.
        "tests": ["-m", "pytest", "-v", *_SIDE_BY_SIDE, "-m", "gpu", "tests"],
        # Most of their time is the compiler's, which has a core for each process.
        "kernel tests": ["-m", "pytest", "-v", *_IN_PARALLEL, *map(str, _tests_of_kernels()),
                         *(f"--deselect=tests/test_kernel_resources.py::test_{name}" for name in _DONE_APART)],
        "resources": _resources(out, "around"),
        "trunk resources": _resources(out, "trunk"),
        "kernels": ["-m", "bench.kernels", "--out", str(out / "kernels.json")],
        # Its table goes to the log alone: the report's file has the same operations.
        "operations": ["-m", "pytest", "bench/operations.py", "--benchmark-enable", "--benchmark-only"],
        # Of the main job: report.json, report.md, roofline.png, and profile.txt of the compiled step.
        "report": ["-m", "bench", "report", "--device", "cuda", "--recipe", "imagenet224", "--batch-size", "256",
                   "--out", str(out)],
        "trunk tiles": ["-m", "bench.trunk_tiles", "--out", str(out / "trunk_tiles.json")],
    }  # fmt: skip


def _tests_of_kernels() -> list[Path]:
    return sorted(path for kind in ("kernel", "trunk") for path in _ROOT.glob(f"tests/test_{kind}*.py"))


def _resources(out: Path, part: str) -> list[str]:
    """Against the table of this machine's Triton; where there is none, one is made."""
    name = f"{'kernel' if part == 'around' else part}_resources_triton-{triton_version() or 'none'}.json"
    table = _ROOT / "bench" / "results" / name
    choice = ["--check", str(table)] if table.exists() else ["--out", str(out / name)]
    return ["-m", "bench.kernel_resources", "--part", part, *choice]


def run(command: list[str], log: Path, limit_s: float) -> int | str:
    """The part's exit status, or that it took too long. Nothing that it started outlives it: that would disturb the
    next part's timings. In a group of its own, and in this session, which may end before it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, and so by a child
    with log.open("a") as file:
        print(f"== {' '.join(command)}", file=file, flush=True)
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, process_group=0)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_TOLD_WITHIN_S)
            return f"took over {limit_s:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and JSON")
    parser.add_argument("--only", nargs="+", help="names of parts; all when not given")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all parts together; no limit by default")
    given = parser.parse_args()
    out = given.out.resolve()
    everything = parts(out)
    if unknown := set(given.only or ()) - everything.keys():
        sys.exit(f"gpu-check: no part {', '.join(sorted(unknown))}; there are {', '.join(everything)}")
    if not torch.cuda.is_available():
        sys.exit(f"gpu-check: torch {torch.__version__} sees no CUDA device; `make test` and `make bench` need none")
    out.mkdir(parents=True, exist_ok=True)
    log = out / LOG
    log.unlink(missing_ok=True)
    failed, end = [], time.monotonic() + given.seconds
    for name, command in everything.items():
        if given.only and name not in given.only:
            continue
        limit_s = min(_LIMIT_S, end - time.monotonic() - _TOLD_WITHIN_S)
        status = run(command, log, limit_s) if limit_s > 0 else "no time is left for it"
        print(f"{name}: {'passed' if status == 0 else f'failed, {status}'}", flush=True)
        if status != 0:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}; see {log}" if failed else 0)


if __name__ == "__main__":
    main()
