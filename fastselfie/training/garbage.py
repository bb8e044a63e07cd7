"""Python's garbage collector, kept from walking over what lives as long as a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_INTERPRETERS_OWN = 1_000
"""Objects that an interpreter may have frozen before any program does: 375 of Python 3.12."""


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Inside, the collector leaves alone what was there before: modules, the network, the data's bookkeeping.

    Steps make enough short-lived objects to start a collection of everything now and then, and everything is some
    300,000 objects of imported packages: a sixth of a second in which nothing is trained. A program that has frozen its
    own, as one does before it forks, finds it as it was: nobody can thaw a part.
    """
    if gc.get_freeze_count() > _INTERPRETERS_OWN:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
