"""Runs of the real program in processes of their own, on networks small enough for a busy CPU."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

from tests.warm_start import Forked, environment

TIMEOUT_S = 180
MEASURED = frozenset({"images_per_second", "data_wait", "peak_gib"})
"""Figures of metrics.jsonl that depend on the machine's mood."""
SMALL = (
    *("tiny", "--data", "synthetic:200", "--width", "0.0625", "--heads", "4", "--batch-size", "16"),
    *("--device", "cpu", "--precision", "fp32"),
)
"""Recipe and options of a run of a few seconds."""
Process: TypeAlias = subprocess.Popen[str] | Forked
PROGRAM = (sys.executable, "-m", "fastselfie")


def torchrun(processes: int) -> tuple[str, ...]:
    """The program under torchrun on this machine."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return (*launcher, "--module", "fastselfie")


def start(
    *words: str | Path,
    cwd: Path,
    program: Sequence[str] = (),
    processes: int = 1,
    before: Callable[[], None] | None = None,
) -> Process:
    """Start a command, where nothing is said by which ``program`` or what is to run in the child ``before`` it, in
    ``processes`` that need not import torch. Signals, and what torchrun itself does, are for `torchrun` to show."""
    if not program and before is None:
        return Forked(list(map(str, words)), cwd, processes)
    return subprocess.Popen(
        [*(program or PROGRAM), *map(str, words)], cwd=cwd, env=environment(), text=True, preexec_fn=before,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def as_in_a_terminal() -> None:
    """In a group of its own, and with SIGINT as it is there: what a script starts in the background ignores it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: Process) -> subprocess.CompletedProcess[str]:
    """Wait until it ends. Where it does not: end it and what it started, and tell where each thread of them was."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for number in _stopped(process.pid):
            os.kill(number, signal.SIGABRT)  # at which `faulthandler` prints them
            os.kill(number, signal.SIGCONT)
            time.sleep(0.2)  # one after the other
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        said = "\n".join(process.communicate(timeout=TIMEOUT_S))
        raise AssertionError(f"{process.args!r} did not end in {TIMEOUT_S} s:\n{said}") from None
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _stopped(number: int) -> list[int]:
    """What a process has started, and it, now stopped: so none is reaped, and each keeps its number."""
    os.kill(number, signal.SIGSTOP)
    tasks = Path(f"/proc/{number}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [*(each for child in children for each in _stopped(child)), number]


def fastselfie(
    *words: str | Path,
    cwd: Path,
    program: Sequence[str] = (),
    processes: int = 1,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is."""
    return end(start(*words, cwd=cwd, program=program, processes=processes, before=before))


def run_module(
    name: str, *words: str | Path, cwd: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m NAME`` to its end, whatever that is, with ``variables`` in its environment too."""
    return end(Forked(list(map(str, words)), cwd, program=name, variables=variables))


def in_process(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that is refused inside this process: torch is there already, which takes seconds elsewhere."""
    from fastselfie.cli import status

    out, err = io.StringIO(), io.StringIO()
    here = contextlib.chdir(cwd), mock.patch.dict(os.environ, environment(), clear=True)
    with here[0], here[1], contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = status([str(word) for word in words])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def succeed(
    *words: str | Path, cwd: Path, program: Sequence[str] = (), processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a command that must do its work."""
    ended = fastselfie(*words, cwd=cwd, program=program, processes=processes)
    assert ended.returncode == 0, ended.stderr
    return ended


def stop_at(
    step: int, number: signal.Signals, *words: str | Path, run: Path, program: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Start a command, send it a signal as soon as metrics.jsonl in ``run`` tells of ``step``, and wait for its end."""
    process = start(*words, cwd=run.parent, program=program)
    os.setpriority(os.PRIO_PROCESS, process.pid, 19)  # behind who watches it: it must not be over before the signal
    deadline = time.monotonic() + TIMEOUT_S
    while newest_step(run) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    return end(process)


def newest_step(run: Path) -> int:
    """The last step that metrics.jsonl tells of; 0 before there is one."""
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the machine's mood decides. Every one must be whole."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def checkpoints(run: Path) -> list[int]:
    """Steps of the checkpoints there are, ascending. Nothing else may lie beside them."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def checkpoint(run: Path, step: int) -> Path:
    """The folder of the checkpoint of ``step``."""
    return run / "checkpoints" / f"step-{step:09d}"


def is_whole(folder: Path) -> bool:
    """Whether every file that a checkpoint's manifest names has its checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha for name, sha in manifest.items())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below ``folder``; empty where there is none."""
    found = sorted(folder.rglob("*")) if folder.is_dir() else []
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def assert_equal_runs(run: Path, reference: Path) -> None:
    """Both logged the same figures, put patches in the same places and ended with the same weights, to the bit."""
    assert metrics(run) == metrics(reference)
    assert contents(run / "placements") == contents(reference / "placements")
    assert (run / "encoder.safetensors").read_bytes() == (reference / "encoder.safetensors").read_bytes()


def assert_refused(ended: subprocess.CompletedProcess[str]) -> str:
    """Exit status 2 and one line; that line."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
    assert lines[0].startswith("fastselfie: ")
    assert "Traceback" not in lines[0]
    return lines[0]
