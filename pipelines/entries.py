"""The rows of an index, read when they are wanted. Of a mapped index every page that was looked at stays in the memory
of the process, after an epoch all of it; so those are read from the file, by position, and nothing is kept but rows
whose label is still to be asked for.

Shapes: S images, B of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.packed_format import ENTRY
from fastselfie.pipelines.storage import LocalFolder

_AT_ONCE = 1 << 15  # rows
_RECENT = 1 << 13  # rows that are kept, some 2 MB

_Row: TypeAlias = tuple[int, int, int, int, int]


class Entries:
    """Rows of `fastselfie.pipelines.packed_format.ENTRY`. Safe to use from several threads, and can be pickled."""

    def __init__(self, entries_S: NDArray[np.void]) -> None:
        """Args: entries_S: ENTRY (S,), in memory or mapped as `numpy.memmap` does it."""
        mapped = entries_S if isinstance(entries_S, np.memmap) and entries_S.filename is not None else None
        self._array_S = entries_S if mapped is None else None
        self._count, self._begin = len(entries_S), 0
        self._recent: dict[int, _Row] = {}  # an image's label is wanted some batches after its bytes, and then no more
        if mapped is not None:
            path = Path(mapped.filename)  # type: ignore[arg-type]  # numpy's stubs leave None in
            self._folder, self._name, self._begin = LocalFolder(path.parent), path.name, mapped.offset

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": {}}  # threads may be changing it

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> _Row:
        """Offset, size, shard, label and checksum of image ``index``.

        Raises:
            OSError: the index cannot be read any more.
        """
        row = self._row(index)
        if len(self._recent) >= _RECENT:
            self._recent.clear()  # seldom enough that no order needs to be kept
        self._recent[index] = row
        return row

    def blocks(self) -> Iterator[NDArray[np.void]]:
        """All rows, some thousands at a time."""
        for start in range(0, self._count, _AT_ONCE):
            yield self._rows(start, min(_AT_ONCE, self._count - start))

    def labels(self, index_B: Iterable[int]) -> NDArray[np.int64]:
        """Of some images: int64 (B,)."""
        return np.array([self._label(index) for index in index_B], dtype=np.int64)

    def every_label(self) -> NDArray[np.int64]:
        """Int64 (S,), made anew."""
        return np.concatenate([block["label"] for block in self.blocks()]).astype(np.int64)

    def _label(self, index: int) -> int:
        row: _Row | None = self._recent.pop(index, None)  # other threads may clear it meanwhile
        return (self._row(index) if row is None else row)[3]

    def _row(self, index: int) -> _Row:
        row: _Row = self._rows(range(self._count)[index], 1)[0].item()
        return row

    def _rows(self, start: int, count: int) -> NDArray[np.void]:
        if self._array_S is not None:
            return self._array_S[start : start + count]
        size = ENTRY.itemsize
        data = self._folder.read(self._name, self._begin + start * size, count * size)
        if len(data) < count * size:
            raise OSError(f"{self._folder.path(self._name)} has become shorter")
        return np.frombuffer(data, dtype=ENTRY)
