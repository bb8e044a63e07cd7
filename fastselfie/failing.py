"""Which of a run's processes says on stderr that it failed, and when."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

FIRST_S = 10.0
"""See `let_others_speak`."""


def fail(line: str, alone: bool = False) -> None:
    """One line on stderr: from one process a machine, or from any that met something ``alone``."""
    if not (alone or speaks()):
        let_others_speak()
    say(line)


def let_others_speak() -> None:
    """Wait for another process of this machine to say what is wrong: when one has ended, torchrun ends them all. Where
    that does not come about, it is for this one to say."""
    with suppress(KeyboardInterrupt):
        time.sleep(FIRST_S)


def speaks() -> bool:
    """Whether this process is its machine's first, which says what all of them have to say."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(line: str) -> None:
    """One line on stderr."""
    print(f"fastselfie: {line}", file=sys.stderr)
