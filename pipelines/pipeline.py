"""What the training loop knows of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from fastselfie.pipelines.view import Batch


class Pipeline(Protocol):
    """Batches of views. A batch is a function of its arguments: there is nothing to save."""

    def announce(self, requests: Iterable[tuple[int, int]]) -> None:
        """Say which calls of `batch` will come, in order, so that a pipeline may work ahead of them."""
        ...

    def batch(self, start: int, stop: int) -> Batch:
        """Entries [start, stop) of the endless stream of epochs, as views on the device."""
        ...

    def in_order(self, requests: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Images [start, stop) of each request as they are, without anything random, in epoch 0: for evaluation.

        Those that cannot be used are missing: a batch may be empty.
        """
        ...
