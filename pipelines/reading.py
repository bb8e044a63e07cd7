"""Bytes of images, read by a pool of threads, and read again where the storage fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.image_bytes import BadImage, fault
from fastselfie.pipelines.source import EncodedImages

_GIVEN_UP = 1000  # images known not to be readable that are remembered
_LOST = 8  # reads that failed after all tries with none between that did not: behind a URL, the storage is gone
_LOST_S = 30.0  # and is left alone for so long: hundreds of reads wait for their turn, and a try may take as long
_TRYING_S = 45.0  # after so long no further try at a read begins: two of half a minute, or many that fail at once
_TOGETHER_S = 3.0  # within which all reads fail that were under way when the storage went away
_FEW = 16  # images a task: handing over a task takes as long as reading an image from memory

Result: TypeAlias = NDArray[np.uint8] | BadImage
"""An image's bytes, uint8 (size,), or what is wrong with it."""


class Reader:
    """Reads images ahead of their use. An image that could not be read after all tries gets one try from then on."""

    def __init__(self, images: EncodedImages, threads: int) -> None:
        self._images, self._threads = images, images.readers or threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="read")
        self._given_up: set[int] = set()
        self._failed, self._failure = 0, ""
        self._lost, self._ask_again_at = Event(), 0.0

    @property
    def lost(self) -> bool:
        """Whether remote storage fails all reads: until one succeeds each gets one try, and for a while none."""
        return self._lost.is_set()

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
        if self.lost and time.monotonic() < self._ask_again_at:
            raise BadImage(self._failure)
        begun = time.monotonic()
        for pause_s in (*self._images.pauses_s, None):
            try:
                return self._succeed(index)
            except OSError as raised:
                error = raised
            # A file on a disk of the network may come back; of an object that is missing a server is sure.
            missing = isinstance(error, FileNotFoundError) and self._images.readers is not None
            if pause_s is None or missing or index in self._given_up:
                break
            if time.monotonic() - begun + pause_s > _TRYING_S or self._lost.wait(pause_s):
                break
        raise self._fail(index, error)

    def _succeed(self, index: int) -> bytes:
        data = self._images.read(index)
        self._failed = 0
        self._lost.clear()
        return data

    def _fail(self, index: int, error: OSError) -> BadImage:
        said = f"cannot be read ({error.strerror or error})"
        if not self.lost and len(self._given_up) < _GIVEN_UP:
            self._given_up.add(index)
        if not isinstance(error, FileNotFoundError):
            self._failed, self._failure = self._failed + 1, said
            if self._failed >= _LOST and self._images.readers is not None:
                self._ask_again_at = time.monotonic() + _LOST_S
                self._lost.set()
            elif self._images.readers is not None:  # else this thread would begin another read, and wait as long for it
                self._lost.wait(_TOGETHER_S)
        return BadImage(said)
