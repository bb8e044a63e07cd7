"""Many names in little memory: their bytes one after the other. A million Python strings would be 100 MB a process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20


class Names:
    """S names of files, none with a zero byte in it, in the encoding of the file system.

    Attributes:
        joined: uint8, the names with a zero byte between each two. ends_S: int64 (S,), where each ends in there. Both
            may be memory-mapped.
    """

    def __init__(self, joined: NDArray[np.uint8], ends_S: NDArray[np.int64]) -> None:
        self.joined, self.ends_S = joined, ends_S

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The same names, in the same order."""
        encoded = [os.fsencode(name) for name in names]
        return cls.split(b"\0".join(encoded), len(encoded))

    @classmethod
    def split(cls, joined: bytes, count: int) -> Names:
        """``count`` names with a zero byte between each two."""
        array = np.frombuffer(joined, dtype=np.uint8)
        inner = np.flatnonzero(array == 0)
        ends_S = np.append(inner, len(array))[:count].astype(np.int64)
        assert len(ends_S) == count, "a name holds a zero byte, or one is missing"
        return cls(array, ends_S)

    def __len__(self) -> int:
        return len(self.ends_S)

    def __getitem__(self, index: int) -> str:
        number = range(len(self))[index]
        start = int(self.ends_S[number - 1]) + 1 if number else 0
        return os.fsdecode(self.joined[start : int(self.ends_S[number])].tobytes())

    def pieces(self) -> Iterator[bytes]:
        """``joined``, piece by piece."""
        for start in range(0, len(self.joined), _CHUNK):
            yield self.joined[start : start + _CHUNK].tobytes()
