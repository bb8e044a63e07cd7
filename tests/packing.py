"""What the tests of `fastselfie prepare` share."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from fastselfie.cli import status


def members(path: Path) -> dict[str, bytes]:
    """The files in a tar."""
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Exit status 2 and one line; that line. In this process, for the sake of time."""
    assert status(["prepare", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line
