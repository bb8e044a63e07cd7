"""A side in a process of its own, which nothing that FastSelfie changes in its process reaches: the C library's memory
settings, for one. Its steps are still called in turn with those of other sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

Step = Callable[[], object]


@contextmanager
def apart(make: Callable[..., Step], *arguments: Any) -> Iterator[Step]:
    """The step that ``make(*arguments)`` gives in another process; a call returns when it is done there.

    Raises:
        EOFError: in a call, if the process has ended; it has then printed why.
    """
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
    process.start()
    theirs.close()  # so that its end is noticed

    def step() -> None:
        try:
            ours.send(True)
        except OSError:
            raise EOFError from None
        ours.recv()

    try:
        yield step
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _serve(connection: Connection, make: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    step = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:  # nobody will ask again
            return
        step()
        connection.send(True)
