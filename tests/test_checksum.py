"""The checksum of packed images: the number that zlib computes, whichever library does it."""

from __future__ import annotations

import importlib
import sys
import zlib

import numpy as np
import pytest

from fastselfie.pipelines import checksum

LENGTHS = (0, 1, 7, 15, 16, 63, 64, 255, 256, 1000, 4096, 5121, 99_991)


@pytest.mark.parametrize("package", ["isal.isal_zlib", None])
def test_it_is_that_of_zlib(package: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every length about the steps that libraries take, from any start, and of a NumPy array's memory."""
    if package is None:
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    else:
        pytest.importorskip(package)
    module = importlib.reload(checksum)
    assert (module.crc32 is zlib.crc32) == (package is None)
    for length in LENGTHS:
        data = np.random.default_rng(length).bytes(length)
        assert module.crc32(data) == zlib.crc32(data)
        assert module.crc32(np.frombuffer(data, np.uint8).data, 12345) == zlib.crc32(data, 12345)
    monkeypatch.undo()
    importlib.reload(checksum)
