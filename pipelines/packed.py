"""Packed shards, here or behind a URL: what ``fastselfie prepare`` writes; `packed_format` says how they look.

Opening reads the manifest, asks for each shard's size and passes once over the index; no shard is read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.checksum import crc32
from fastselfie.pipelines.entries import Entries
from fastselfie.pipelines.index_file import index_path, keep_bytes, one_maker
from fastselfie.pipelines.packed_format import ENTRY, FORMAT, MANIFEST
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.storage import LocalFolder, Storage

_TRAIN, _TEST = "train", "val"
_FIRST = (f"{_TRAIN}.npy", f"{_TRAIN}-000000.tar")
_CHUNK = 1 << 20
_AGAIN = "pack it again, or copy it again"


def is_packed(storage: Storage) -> bool:
    """Whether a manifest lies there, and beside it the first shard or index: others have files of that name too."""
    return _is_there(storage, MANIFEST) and any(_is_there(storage, name) for name in _FIRST)


def _is_there(storage: Storage, name: str) -> bool:
    try:
        storage.state(name)
    except FileNotFoundError:
        return False
    return True


def read_packed(storage: Storage, index: Path | None) -> Source:
    """Open what was packed.

    Args:
        index: where indices of remote storage are kept, which are then mapped from there; None to hold them in memory.

    Raises:
        UserError: the manifest, a shard or an index is not what was written. OSError: the storage fails.
    """
    text = storage.whole(MANIFEST)
    classes, splits = _manifest(storage, text)
    opened = {name: _open(storage, name, split, classes, text, index) for name, split in splits.items()}
    return Source(name=storage.name, train=opened[_TRAIN], test=opened.get(_TEST), classes=classes)


@dataclass(frozen=True, kw_only=True)
class _Described:
    """A split as the manifest describes it; ``sizes`` in bytes, by shard."""

    images: int
    sizes: dict[str, int]
    index: str
    checksum: int


def _manifest(storage: Storage, text: bytes) -> tuple[tuple[str, ...], dict[str, _Described]]:
    """Classes and splits."""
    where = f"{storage.place}/{MANIFEST}"
    try:
        parsed = json.loads(text)
        number = int(parsed["format"])
        if number > FORMAT:
            raise UserError(f"{where} is of format {number}, and this FastSelfie reads {FORMAT}: take a newer one")
        splits = {str(name): _described(split) for name, split in parsed["splits"].items()}
        classes = tuple(str(name) for name in parsed["classes"])
        if number != FORMAT or _TRAIN not in splits:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{where} is damaged: {_AGAIN}") from None
    return classes, {name: split for name, split in splits.items() if name in (_TRAIN, _TEST)}


def _described(split: dict[str, Any]) -> _Described:
    """Raises ValueError, TypeError or KeyError where it is not as described."""
    sizes = {str(shard["name"]): int(shard["bytes"]) for shard in split["shards"]}
    index, images = str(split["index"]["name"]), int(split["images"])
    plain = all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in (*sizes, index))
    if not sizes or len(sizes) != len(split["shards"]) or images < 1 or not plain:
        raise ValueError
    return _Described(images=images, sizes=sizes, index=index, checksum=int(split["index"]["crc32"]))


def _open(
    storage: Storage, name: str, split: _Described, classes: tuple[str, ...], text: bytes, index: Path | None
) -> Shards:
    _check_shards(storage, split)
    entries_S = _entries(storage, split, index)
    ends = {"shard": len(split.sizes)} | ({"label": len(classes)} if classes else {})
    fits = len(entries_S) == split.images
    if not fits or not all(_within(block, ends) for block in Entries(entries_S).blocks()):
        raise UserError(f"{storage.place}/{split.index} does not fit {MANIFEST}: {_AGAIN}")
    # The manifest speaks for all splits, but two of them are not the same data.
    described = name.encode() + text
    return Shards(
        storage, shards=list(split.sizes), entries_S=entries_S, labelled=bool(classes), members=None,
        described=described,
    )  # fmt: skip


def _within(rows: NDArray[np.void], ends: dict[str, int]) -> bool:
    """Whether the numbers of each column are at least 0 and below its end."""
    return all(rows[column].min() >= 0 and rows[column].max() < end for column, end in ends.items())


def _check_shards(storage: Storage, split: _Described) -> None:
    """Each shard is there and of its size."""

    def fault(name: str) -> str:
        try:
            size, _ = storage.state(name)
        except FileNotFoundError:
            return f"{storage.place}/{name} is missing: {_AGAIN}"
        if size != split.sizes[name]:
            return f"{storage.place}/{name} has {size} bytes, and {MANIFEST} says {split.sizes[name]}: {_AGAIN}"
        return ""

    with ThreadPoolExecutor(storage.readers or 1) as pool:
        faults = [said for said in pool.map(fault, split.sizes) if said]
    if faults:
        raise UserError(faults[0])
    storage.check(next(iter(split.sizes)))


def _entries(storage: Storage, split: _Described, index: Path | None) -> NDArray[np.void]:
    """The index: mapped where it is a file of this machine, or can be made one."""
    where = f"{storage.place}/{split.index}"
    try:
        found = _index(storage, split, index)
        if _checksum([found] if isinstance(found, bytes) else _chunks(found)) != split.checksum:
            raise UserError(f"{where} is damaged: {_AGAIN}")
        entries: NDArray[np.void] = (
            np.load(io.BytesIO(found)) if isinstance(found, bytes) else np.load(found, mmap_mode="r")
        )
    except FileNotFoundError:
        raise UserError(f"{where} is missing: {_AGAIN}") from None
    except (OSError, UserError):
        raise
    except Exception:  # of a header with a right checksum
        raise UserError(f"{where} is no index: {_AGAIN}") from None
    if not isinstance(entries, np.ndarray) or entries.dtype != ENTRY or entries.ndim != 1:
        raise UserError(f"{where} is no index of format {FORMAT}: {_AGAIN}")
    return entries


def _index(storage: Storage, split: _Described, folder: Path | None) -> Path | bytes:
    """A file of this machine that holds the index, or its bytes where there is no folder to keep it in."""
    if isinstance(storage, LocalFolder):
        return storage.path(split.index)
    if folder is None:
        return storage.whole(split.index)
    kept = index_path(folder, "packed", f"{storage.key}/{split.index}")
    with one_maker(kept):
        outdated = kept.exists()
        if outdated and _checksum(_chunks(kept)) == split.checksum:
            return kept
        data = storage.whole(split.index)
        if _checksum([data]) != split.checksum:  # which the caller refuses
            return data
        keep_bytes(kept, [data], replace=outdated)
    return kept


def _chunks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _checksum(chunks: Iterable[bytes]) -> int:
    checksum = 0
    for chunk in chunks:
        checksum = crc32(chunk, checksum)
    return checksum
