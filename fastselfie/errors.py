"""Errors that the user can mend, and how to recognise one that only reports another process's end."""

from __future__ import annotations

import re


def one_line(text: str) -> str:
    """``text`` as a line that a terminal only shows: names of files may hold line ends, and codes that command it."""
    return re.sub(r"[\0-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", " ".join(text.split()))


class UserError(Exception):
    """A mistake in what the user gave us. The command line prints it as one line and exits with status 2.

    The message names the field or the file and the remedy, and never spans lines.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class LocalError(UserError):
    """One that a single process met: it speaks for itself, where otherwise one process a machine speaks for all."""


def lost_another(error: BaseException) -> bool:
    """Whether it only tells that another process has gone, as gloo's "Connection closed by peer": that one says why."""
    return isinstance(error, RuntimeError) and " by peer" in str(error)
