"""A run's process: what it is started with, where its words go, and what it said last."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

PROGRAM = (sys.executable, "-m", "fastselfie")
_BEGINS = "$ fastselfie "
# Of the group of processes that we may be one of, as a cluster starts all its jobs by torchrun: a run is alone, and
# runs side by side would want one port.
_OF_A_GROUP = frozenset(
    {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"}
)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
# Opened here: in a child between fork and exec another thread may have held the loader's lock.
_LIBC = ctypes.CDLL(None)


def start(
    words: Sequence[str], log: Path, environment: Mapping[str, str], program: Sequence[str] = PROGRAM
) -> subprocess.Popen[bytes]:
    """Start ``program`` with ``words``, in a session of its own; what it says is added to ``log``, after the command.

    Args:
        environment: what differs from ours.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(os.fsencode(f"{_BEGINS}{shlex.join(words)}\n"))
        file.flush()
        ours = {name: value for name, value in os.environ.items() if name not in _OF_A_GROUP}
        return subprocess.Popen(
            [*program, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env={**ours, **environment}, start_new_session=True, preexec_fn=partial(die_with_parent, os.getpid()),
        )  # fmt: skip


def last_words(log: Path, status: int) -> str:
    """Why a process that ended with ``status`` failed, in one line: the last of its log, and the signal if it was one.

    A process that the kernel kills for its memory, SIGKILL, has no time to say so.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), _BEGINS)
    words = "without a word" if said.startswith(_BEGINS) else said.removeprefix("fastselfie: ").strip()
    return f"ended by {signal.Signals(-status).name}, last said: {words}" if status < 0 else words


def die_with_parent(parent: int) -> None:
    """In the child: a protocol that is killed leaves no runs behind; they save themselves and stop (Linux)."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the protocol's own handler would swallow it here
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != parent:  # it was killed before
        os.kill(os.getpid(), signal.SIGTERM)
