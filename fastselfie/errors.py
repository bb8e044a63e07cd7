"""The one exception that means that the user can mend this, and the one that means nothing by itself."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave us. The command line prints it as one line and exits with status 2.

    The message names the field or the file and the remedy, and never spans lines.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class LocalError(UserError):
    """One that a single process met: it speaks for itself, where otherwise one process a machine speaks for all."""


def lost_another(error: BaseException) -> bool:
    """Whether it only tells that another process has gone, as gloo's "Connection closed by peer": that one says why."""
    return isinstance(error, RuntimeError) and " by peer" in str(error)
