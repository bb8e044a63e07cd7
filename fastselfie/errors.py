"""The one exception that means: the user can mend this."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave us. The command line prints it as one line and exits with status 2.

    The message names the field or the file and the remedy, and never spans lines.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class LocalError(UserError):
    """One that a single process met: it speaks for itself, where otherwise one process a machine speaks for all."""
