"""Images that are members of tar files, read by position: no tar is walked once there is an index.

Shapes: S images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fastselfie.pipelines.checksum import crc32
from fastselfie.pipelines.entries import Entries
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.names import Names
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.storage import Storage


class Shards(EncodedImages):
    """One part of a data set in tar files, by an index.

    Attributes:
        storage: where they lie. shards: their names. entries_S: rows of `fastselfie.pipelines.packed_format.ENTRY`,
            perhaps memory-mapped; a checksum of 0 means that there is none. labelled: whether their labels are labels;
            else all are 0.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        shards: Sequence[str],
        entries_S: NDArray[np.void],
        labelled: bool,
        members: Names | None,
        described: bytes,
    ) -> None:
        """Args: members: their names; None for numbered ones, as packed. described: what tells them from others."""
        self.storage, self.shards, self.entries_S = storage, tuple(shards), entries_S
        self.readers, self.pauses_s, self._labelled = storage.readers, storage.pauses_s, labelled
        self._members, self._described = members, described
        self._entries = Entries(entries_S)

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def labels_S(self) -> NDArray[np.int64]:  # type: ignore[override]  # noqa: N802
        """See `EncodedImages`; read when it is asked for."""
        return self._entries.every_label() if self._labelled else np.zeros(len(self), dtype=np.int64)

    def labels(self, index_B: Sequence[int]) -> NDArray[np.int64]:
        """See `EncodedImages.labels`."""
        return self._entries.labels(index_B) if self._labelled else np.zeros(len(index_B), dtype=np.int64)

    def name(self, index: int) -> str:
        """Shard and member, as in ``train-000003.tar/000000123.jpg``."""
        member = f"{index:09d}.jpg" if self._members is None else self._members[index]
        return f"{self.shards[self._entries[index][2]]}/{member}"

    def read(self, index: int) -> bytes:
        """See `EncodedImages.read`."""
        offset, size, shard, _, checksum = self._entries[index]
        data = self.storage.read(self.shards[shard], offset, size)
        if len(data) < size:
            raise BadImage("is cut off")
        if checksum and crc32(data) != checksum:
            raise BadImage("does not match its checksum")
        return data

    def identity(self) -> Iterable[bytes]:
        """The manifest where there is one; otherwise names and sizes of shards and members, and labels."""
        yield self._described
        if self._members is not None:
            yield from self._members.pieces()
            yield np.ascontiguousarray(self.entries_S["size"]).tobytes()
            yield self.labels_S.tobytes()
