"""Bytes of images, read by a pool of threads, and read again where the storage fails."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.image_bytes import BadImage, fault
from fastselfie.pipelines.source import EncodedImages

_GIVEN_UP = 1000  # images known not to be readable that are remembered
_LOST = 8  # reads that failed after all tries with none between that did not: behind a URL, the storage is gone
_SILENT_S = 30.0  # nobody asks again for so long after so many in a row got no answer, for which each waited as long
_FEW = 16  # images a task: handing over a task takes as long as reading an image from memory

Result: TypeAlias = NDArray[np.uint8] | BadImage
"""An image's bytes, uint8 (size,), or what is wrong with it."""


class Reader:
    """Reads images ahead of their use. An image that could not be read after all tries gets one try from then on."""

    def __init__(self, images: EncodedImages, threads: int) -> None:
        self._images, self._threads = images, images.readers or threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="read")
        self._given_up: set[int] = set()
        self._failed = self._unanswered = 0
        self._silent_until = -float("inf")

    @property
    def lost(self) -> bool:
        """Whether remote storage fails all reads: until it does not, each gets one try, and while it is silent none."""
        return self._images.readers is not None and (self._failed >= _LOST or self._silent)

    @property
    def _silent(self) -> bool:
        return time.monotonic() < self._silent_until

    def submit(self, indices: Sequence[int]) -> list[Future[list[Result]]]:
        """Begin to read: tasks of a few images each, which together give all of ``indices`` in their order."""
        few = min(_FEW, -(-len(indices) // (2 * self._threads))) if self._images.readers is None else 1
        return [self._pool.submit(self._read_some, indices[at : at + few]) for at in range(0, len(indices), few)]

    def _read_some(self, indices: Sequence[int]) -> list[Result]:
        results: list[Result] = []
        for index in indices:
            try:
                results.append(self.read(index))
            except BadImage as error:
                results.append(error)
        return results

    def read(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image ``index``: uint8 (size,).

        Raises:
            BadImage: they cannot be read, or `fault` finds one.
        """
        data = self._bytes(index)
        wrong = fault(data)
        if wrong:
            raise BadImage(wrong)
        return np.frombuffer(data, dtype=np.uint8)

    def _bytes(self, index: int) -> bytes:
        error = OSError(errno.ETIMEDOUT, "no answer in time")  # as others found
        for pause_s in (*self._images.pauses_s, None):
            if self._silent:
                break
            try:
                return self._succeed(index)
            except OSError as raised:
                error = raised
                self._hear(error)
            if pause_s is None or self.lost or index in self._given_up:
                break
            time.sleep(pause_s)
        if not isinstance(error, FileNotFoundError):
            self._failed += 1
        if not self._silent and len(self._given_up) < _GIVEN_UP:
            self._given_up.add(index)
        raise BadImage(f"cannot be read ({error.strerror or error})")

    def _succeed(self, index: int) -> bytes:
        data = self._images.read(index)
        self._failed = self._unanswered = 0
        return data

    def _hear(self, error: OSError) -> None:
        """Count answers that do not come: a storage that hangs takes half a minute to say so, every time."""
        self._unanswered = self._unanswered + 1 if error.errno == errno.ETIMEDOUT else 0
        if self._unanswered >= _LOST and self._images.readers is not None:
            self._silent_until = time.monotonic() + _SILENT_S
