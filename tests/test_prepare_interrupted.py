"""Ctrl-C while the processes of `fastselfie prepare` start, which takes them most of a second."""

from __future__ import annotations

import subprocess
import sys

from tests.warm_start import ROOT, environment

_POOL = """
import multiprocessing, os, re, signal
from pathlib import Path
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.shrinking_pool import ShrinkingPool
pool = ShrinkingPool(Shrinking(size=64, side="shorter", quality=90), 2)
"""
# What they have blocked when they are started, they have blocked to their end.
_MASKS = """
with pool:
    for child in multiprocessing.active_children():
        status = Path(f"/proc/{child.pid}/status").read_text()
        print(int(re.search("SigBlk:(.*)", status)[1], 16) >> signal.SIGINT - 1 & 1)
"""
_CTRL_C = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script starts in the background ignores it
from fastselfie.pipelines import shrinking_pool
start = shrinking_pool.ShrinkingProcess
def started(shrinking):
    process = start(shrinking)
    os.kill(os.getpid(), signal.SIGINT)
    return process
shrinking_pool.ShrinkingProcess = started
try:
    with pool:
        print("heard too late")
except KeyboardInterrupt:
    print(len(multiprocessing.active_children()))
"""


def said(program: str) -> list[str]:
    """By a process in which nothing was started before."""
    ended = subprocess.run(
        [sys.executable, "-c", _POOL + program], cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert ended.stderr == ""
    return ended.stdout.split("\n")[:-1]


def test_what_a_terminal_sends_does_not_reach_a_process_that_starts() -> None:
    assert said(_MASKS) == ["1", "1"]


def test_no_process_is_left_behind() -> None:
    assert said(_CTRL_C) == ["0"]
