"""The few images whose contents tell a data set from another are asked for at once where that pays."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from threading import Barrier

import numpy as np

from fastselfie.pipelines.source import EncodedImages, Source

IMAGES = 8


class Remote(EncodedImages):
    """Of which no answer comes before all images are asked for; the last is missing."""

    readers = 32

    def __init__(self) -> None:
        self.labels_S = np.zeros(IMAGES, dtype=np.int64)
        self._asked = Barrier(IMAGES, timeout=10)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> bytes:
        self._asked.wait()
        if index == IMAGES - 1:
            raise FileNotFoundError
        return b"%d" % index

    def identity(self) -> Iterable[bytes]:
        return ()


def test_silent_storage_costs_the_time_of_one() -> None:
    source = Source(name="remote", train=Remote(), test=Remote(), classes=())
    expected = [f"{zlib.crc32(b'%d' % index):08x}" for index in range(IMAGES - 1)]
    assert source.probes() == [*expected, ""] * 2
