"""A bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from fastselfie import progress
from fastselfie.progress import meter


class Clock:
    """Stands in for `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    return made


def test_a_line_a_minute_in_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with meter("packing") as packed:
        for second in range(200):
            clock.now = 1000.0 + second
            packed.at(5000 + 10 * second, 10_000)  # 5,000 are an earlier process's
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "packing: 5,600 of 10,000, 0:07:20 left",
        "packing: 6,200 of 10,000, 0:06:20 left",
        "packing: 6,800 of 10,000, 0:05:20 left",
    ]


def test_nothing_is_said_of_what_is_short(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with meter("packing", 10) as packed:
        for _ in range(10):
            clock.now += 5.9
            packed.advance(1)
    assert capsys.readouterr() == ("", "")


def test_without_a_pace_or_a_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with meter("a") as a, meter("b", 7) as b:
        clock.now += 60
        a.advance(3)
        b.at(0, 7)
    assert capsys.readouterr().err.splitlines() == ["a: 3", "b: 0 of 7"]


def test_a_bar_on_a_terminal() -> None:
    shown = (
        "from fastselfie.progress import meter\nwith meter('packing', 8) as m:\n    m.advance(3)\n    m._bar.refresh()"
    )
    ours, theirs = pty.openpty()
    dropped = ("NO_COLOR", "TTY_COMPATIBLE", "TERM")
    variables = {name: value for name, value in os.environ.items() if name not in dropped} | {"TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", shown], stderr=theirs, env=variables)
    os.close(theirs)
    said = b""
    while True:
        try:
            more = os.read(ours, 1 << 12)
        except OSError:  # its end is closed
            break
        if not more:
            break
        said += more
    os.close(ours)
    assert process.wait() == 0
    assert b"packing" in said
    assert b"3/8" in said
