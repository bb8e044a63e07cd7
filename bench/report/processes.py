"""Several processes on this machine: what meeting after the backward pass costs. `bench.several` is what they run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.report.machine import Machine
from bench.report.rows import Row, Timing, not_run, row
from bench.report.settings import Bench
from fastselfie.files import replace_json

SECTION = "several processes"
TOGETHER, APART = "gradients meet", "gradients do not meet"
_ROOT = Path(__file__).parent.parent.parent
_LIMIT_S, _GRACE_S = 300, 40


def several_processes(bench: Bench, machine: Machine, flops: int | None) -> list[Row]:
    """A step with its all-reduce and one without, the eager network in DDP, all processes sharing one batch.

    The machine's ceilings are one process's: on CUDA each has a device of its own, and FLOP/s are a device's.
    """
    if bench.processes == 1:
        why = "one process, nobody to meet; --processes N starts more"
        return [not_run(SECTION, name, why) for name in (TOGETHER, APART)]
    plan = [{"name": TOGETHER, "order": "off", "meet": True}, {"name": APART, "order": "off", "meet": False}]
    found = run_together(bench, plan)
    if "error" in found[0] or "error" in found[1]:
        return [not_run(SECTION, one["name"], one.get("error", "the other failed"), failed=True) for one in found]
    together, apart = (statistics.median(one["seconds"]) for one in found)
    share = max(0.0, 1 - apart / together)
    own = flops // bench.processes if flops else None
    rows = []
    for one, all_reduce in zip(found, (share, None), strict=True):
        timing = Timing(
            seconds=one["seconds"], startup_s=one["startup_s"], dtype=bench.config.precision,
            images=bench.config.batch_size, flops=own if bench.device.type == "cuda" else flops,
            all_reduce=all_reduce, counted_as="fastselfie eager",
        )  # fmt: skip
        rows.append(row(SECTION, one["name"], timing, machine))
    return rows


def _ended(command: list[str], environment: dict[str, str]) -> tuple[int | None, str]:
    """A launcher's exit status, None where it took too long, and what it printed on stderr."""
    process = subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        told = process.communicate(timeout=_LIMIT_S)[1]
    except subprocess.TimeoutExpired:
        process.terminate()  # it then ends its processes, which a kill would leave behind
        try:
            process.communicate(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return None, ""
    return process.returncode, told


def run_together(bench: Bench, plan: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Start ``bench.processes`` processes that time the variants of ``plan`` in turns; the main one's answers.

    Each has its name, and ``seconds`` and ``startup_s`` or an ``error`` of one line.
    """
    with TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "asked.json", Path(temporary) / "answered.json"
        replace_json(asked, {
            "config": json.loads(json.dumps(asdict(bench.config), default=str)), "plan": list(plan),
            "rounds": bench.rounds, "round_s": bench.round_s, "backend": bench.backend,
        })  # fmt: skip
        # Without an address it asks for this machine's by name, which may take for ever.
        launcher = ["torch.distributed.run", "--standalone", "--local-addr", "localhost"]
        processes = ["--nproc-per-node", str(bench.processes)]
        command = [sys.executable, "-m", *launcher, *processes, "--module", "bench.several", str(asked), str(answered)]
        threads = max(1, len(os.sched_getaffinity(0)) // bench.processes)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        status, told = _ended(command, environment)
        if status != 0 or not answered.exists():
            errors = [line for line in told.splitlines() if "Error" in line]
            late = f"took over {_LIMIT_S} s" if status is None else f"exit status {status}"
            why = errors[0].strip()[:200] if errors and status is not None else late
            return [{"name": one["name"], "error": why} for one in plan]
        answers: list[dict[str, Any]] = json.loads(answered.read_text())["answers"]
        return answers
