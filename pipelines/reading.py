"""Bytes of images, read by a pool of threads, and read again where the storage fails."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.image_bytes import BadImage, fault
from fastselfie.pipelines.source import EncodedImages

_PAUSES_S = (0.1, 0.5)  # before the second and the third try: a network file system that is busy gets over it
_GIVEN_UP = 1000  # images known not to be readable that are remembered


class Reader:
    """Reads images ahead of their use. An image that could not be read after all tries gets one try from then on."""

    def __init__(self, images: EncodedImages, threads: int) -> None:
        self._images = images
        self._pool = ThreadPoolExecutor(images.readers or threads, thread_name_prefix="read")
        self._given_up: set[int] = set()

    def submit(self, index: int) -> Future[NDArray[np.uint8]]:
        """Begin to read; see `read`."""
        return self._pool.submit(self.read, index)

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
        for pause_s in () if index in self._given_up else _PAUSES_S:
            try:
                return self._images.read(index)
            except OSError:
                time.sleep(pause_s)
        try:
            return self._images.read(index)
        except OSError as error:
            if len(self._given_up) < _GIVEN_UP:
                self._given_up.add(index)
            raise BadImage(f"cannot be read ({error.strerror or error})") from None
