"""Shards of the packed format while they are written: whole ones in the folder, what is known of them beside.

Until the data set is complete its folder holds ``unfinished/``: ``pass.json``, what is packed and how; for every
finished shard ``train-000000.npy``, its rows of the index, and ``train-000000.json``, how the pass goes on after it;
and ``shard.tar``, the one being written. The JSON file appears last, and whole: a shard with one is finished.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastselfie.files import flush_to_disk, replace_bytes
from fastselfie.pipelines.packed_format import ENTRY

UNFINISHED = "unfinished"
_OPEN = "shard.tar"
_BLOCK = tarfile.BLOCKSIZE


@dataclass(kw_only=True)
class ShardRecord:
    """What is known of a shard, finished or not.

    Attributes:
        next_index: of the source's split, the first image after it. bytes_read: of the source's images, rejected ones
            too. copied: images whose pixels are the source's. rejected: names and reasons, in order.
    """

    name: str
    images: int = 0
    bytes: int = 0
    next_index: int = 0
    bytes_read: int = 0
    copied: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)


class OpenShard:
    """A shard being written. ``number`` is its place in the split, ``first_key`` the key of its first image."""

    def __init__(self, folder: Path, *, split: str, number: int, first_key: int, most_bytes: int) -> None:
        self._folder, self._split, self._number, self._first_key = folder, split, number, first_key
        self._most_bytes = most_bytes
        self.record = ShardRecord(name=f"{split}-{number:06d}.tar")
        self._rows: list[tuple[int, ...]] = []
        self._file = (folder / UNFINISHED / _OPEN).open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    @property
    def is_empty(self) -> bool:
        """Whether no image is in it."""
        return not self._rows

    def has_room(self, jpeg: bytes) -> bool:
        """Whether the image fits; into an empty shard any does."""
        padded = -(-len(jpeg) // _BLOCK) * _BLOCK
        return not self._rows or self._tar.offset + padded + 3 * _BLOCK <= self._most_bytes

    def add(self, jpeg: bytes, label: int, *, labelled: bool) -> None:
        """Append an image, and its label where the data set has any."""
        key = f"{self._first_key + len(self._rows):09d}"
        row = (self._tar.offset + _BLOCK, len(jpeg), self._number, label, zlib.crc32(jpeg))
        self._member(f"{key}.jpg", jpeg)
        if labelled:
            self._member(f"{key}.cls", str(label).encode())
        self._rows.append(row)

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # no time and no owner: the same images give the same bytes
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def finish(self, next_index: int) -> ShardRecord:
        """Put the shard into the folder; the pass goes on at ``next_index`` of the source's split."""
        self._tar.close()
        flush_to_disk(self._file)
        self.record.bytes = self._file.tell()
        self._file.close()
        self.record.images, self.record.next_index = len(self._rows), next_index
        os.replace(self._folder / UNFINISHED / _OPEN, self._folder / self.record.name)
        known = self._folder / UNFINISHED / Path(self.record.name).stem
        rows = io.BytesIO()
        np.save(rows, np.array(self._rows, dtype=ENTRY))
        replace_bytes(known.with_suffix(".npy"), rows.getvalue())
        replace_bytes(known.with_suffix(".json"), json.dumps(asdict(self.record)).encode())
        return self.record

    def drop(self) -> None:
        """Remove it, of a pass that is interrupted."""
        try:
            self._file.close()
        finally:
            (self._folder / UNFINISHED / _OPEN).unlink(missing_ok=True)


def finished_shards(folder: Path, split: str) -> list[ShardRecord]:
    """The split's shards up to the first that is not there as it was written."""
    found: list[ShardRecord] = []
    while (record := _finished(folder, f"{split}-{len(found):06d}")) is not None:
        found.append(record)
    return found


def _finished(folder: Path, stem: str) -> ShardRecord | None:
    """What is known of a shard; None where it, or what is known of it, is missing or damaged."""
    try:
        known: dict[str, Any] = json.loads((folder / UNFINISHED / f"{stem}.json").read_bytes())
        record = ShardRecord(**known | {"rejected": [(str(name), str(reason)) for name, reason in known["rejected"]]})
        shard = folder / f"{stem}.tar"
        numbers = record.images, record.bytes, record.next_index, record.bytes_read, record.copied
        whole = record.name == shard.name and all(type(number) is int and number >= 0 for number in numbers)
        whole = whole and shard.is_file() and shard.stat().st_size == record.bytes
        return record if whole and len(index_rows(folder, record)) == record.images else None
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # damage makes json and NumPy raise nearly anything
        return None


def index_rows(folder: Path, record: ShardRecord) -> NDArray[np.void]:
    """A finished shard's rows of the index. Raises ValueError or OSError: they are damaged, or cannot be read."""
    rows: NDArray[np.void] = np.load(folder / UNFINISHED / Path(record.name).with_suffix(".npy"))
    if rows.dtype != ENTRY:
        raise ValueError("no rows of an index")
    return rows
