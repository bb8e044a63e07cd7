"""What Ctrl-C does while a command imports what it needs, which takes seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """While open, Ctrl-C ends the process at once with status 130; nothing has begun yet.

    An exception would have to pass through the C++ of torch's import, which aborts ("terminate called after throwing an
    instance of 'pybind11::error_already_set'").
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
