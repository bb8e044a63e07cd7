"""A command whose words nobody reads, or for which there is no room, ends with the status that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import assert_refused
from tests.warm_start import ROOT, environment


@pytest.fixture
def nobody() -> Iterator[int]:
    """A pipe whose reader has gone."""
    ours, theirs = os.pipe()
    os.close(ours)
    yield theirs
    os.close(theirs)


def ended(words: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """As in a shell, where the interpreter keeps words until it has many."""
    variables = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-m", "fastselfie", words], cwd=ROOT, env=variables, text=True, timeout=60, check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
    )  # fmt: skip


@pytest.mark.parametrize("words", ["--help", "--version"])
def test_a_reader_that_has_gone(words: str, nobody: int) -> None:
    found = ended(words, stdout=nobody)
    assert (found.returncode, found.stderr) == (141, "")


def test_a_reader_of_errors_that_has_gone(nobody: int) -> None:
    found = ended("nonsense", stderr=nobody)
    assert (found.returncode, found.stdout) == (141, "")


def test_no_room() -> None:
    with Path("/dev/full").open("w") as full:
        assert "No space left on device" in assert_refused(ended("--version", stdout=full))


def test_no_output_at_all() -> None:
    program = f"exec {sys.executable} -m fastselfie --version >&-"
    assert subprocess.run(["sh", "-c", program], cwd=ROOT, env=environment(), timeout=60, check=False).returncode == 0
