"""ImageNet as TFRecord shards: ``train-00000-of-01024`` and ``validation-00000-of-00128``, of TensorFlow's scripts.

A record is its length, a checksum of that, a ``tf.train.Example`` and a checksum of it. Nothing in a shard tells where
records begin but the records before: an index of them is made once, by reading every shard through.

Of the Example, ``image/encoded`` is the image, ``image/class/label`` its label, from 1 on with 0 for the background,
and ``image/class/synset`` or ``image/class/text`` the class's name. Shapes: S images.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.index_file import Index, index_path, read_index, write_index
from fastselfie.pipelines.numbered_files import TESTS, TRAIN, has_training_parts, parts
from fastselfie.pipelines.source import MOST_CLASSES, EncodedImages, Source
from fastselfie.pipelines.tensorflow_example import bytes_of, example, integer_of, masked_crc32c, require_libraries

ROW = np.dtype([("offset", "<i8"), ("length", "<i8"), ("shard", "<i4"), ("label", "<i4")])
"""A record: where its Example begins in which shard, how many bytes it has, the label as it stands there."""
_HEAD, _TAIL = struct.Struct("<QI"), struct.Struct("<I")
_IMAGE, _LABEL, _NAMES = "image/encoded", "image/class/label", ("image/class/synset", "image/class/text")
_NO_LABEL, _DAMAGED = -1, -2  # in place of a label
_WALKERS = 8
_BUFFER_BYTES = 1 << 20
_AGAIN = "copy it again"


class Records(EncodedImages):
    """One part of a data set in TFRecord shards; ``rows_S`` is of dtype `ROW`, perhaps memory-mapped."""

    def __init__(self, shards: list[Path], rows_S: NDArray[np.void], labels_S: NDArray[np.int64]) -> None:
        self.shards, self.rows_S, self.labels_S = shards, rows_S, labels_S

    def name(self, index: int) -> str:
        """Shard and where in it."""
        row = self.rows_S[index]
        return f"{self.shards[row['shard']]} at byte {row['offset']}"

    def read(self, index: int) -> bytes:
        """See `EncodedImages.read`."""
        offset, length, shard, _ = self.rows_S[index].item()
        with self.shards[shard].open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), length + _TAIL.size, offset)
        if len(data) < length + _TAIL.size:
            raise BadImage("is cut off")
        if masked_crc32c(data[:length]) != _TAIL.unpack(data[length:])[0]:
            raise BadImage("does not match its checksum")
        image = bytes_of(example(data[:length]), _IMAGE)
        if image is None:
            raise BadImage(f"has no {_IMAGE}")
        return image

    def identity(self) -> Iterable[bytes]:
        """Names of shards, sizes of records and labels."""
        yield "\0".join(path.name for path in self.shards).encode()
        yield np.ascontiguousarray(self.rows_S["length"]).tobytes()
        yield self.labels_S.tobytes()


def is_tfrecord(path: Path) -> bool:
    """Whether shards of a training split lie in ``path`` or in ``path/train``."""
    return has_training_parts(_folders(path), suffix="")


def read_tfrecord(path: Path, index: Path | None, progress: Callable[[int, int], None] | None = None) -> Source:
    """Open the shards in ``path``, or in its folders ``train`` and ``validation``.

    Args:
        index: folder where the index is kept, and mapped into memory from; None to make it every time. It is made anew
            when a shard's size or time changed. progress: told, while it is made, how many bytes of how many are read.

    Raises:
        UserError: a shard is missing or damaged beyond single images, or a library is missing. OSError: the storage
            fails.
    """
    require_libraries(path)
    shards = parts(_folders(path), suffix="")
    found = _index(path, shards, index, progress)
    rows = {split: found.arrays[split] for split in shards}
    names = {int(label): name for label, name in found.header["names"].items()}
    labels, classes = _labels(rows, names)
    splits = {split: Records(shards[split], rows[split], labels[split]) for split in shards}
    return Source(name=path.resolve().name, train=splits["train"], test=splits.get("test"), classes=classes)


def _folders(path: Path) -> tuple[Path, ...]:
    return path, *(path / split for split in (TRAIN, *TESTS))


def _labels(
    rows: dict[str, NDArray[np.void]], names: dict[int, str]
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Labels from 0 on by split, and the classes; none where a split has no labels.

    Labels that begin at 1 are moved to begin at 0. An image whose record is damaged has label 0 and is never read.
    """
    stored = {split: rows_S["label"].astype(np.int64) for split, rows_S in rows.items()}
    every = np.concatenate([labels_S[labels_S != _DAMAGED] for labels_S in stored.values()])
    if not len(every) or (every == _NO_LABEL).any():
        return {split: np.zeros_like(labels_S) for split, labels_S in stored.items()}, ()
    first = 1 if every.min() >= 1 else 0
    classes = tuple(names.get(label, str(label)) for label in range(first, int(every.max()) + 1))
    return {split: np.maximum(labels_S - first, 0) for split, labels_S in stored.items()}, classes


def _index(
    path: Path, shards: dict[str, list[Path]], folder: Path | None, progress: Callable[[int, int], None] | None
) -> Index:
    """What was kept, or a walk through all shards."""
    files = {split: [_state(shard) for shard in found] for split, found in shards.items()}
    kept = None if folder is None else index_path(folder, "tfrecord", str(path.resolve()))
    known = None if kept is None else read_index(kept)
    if known is not None and known.header.get("files") == files:
        return known
    total = sum(size for states in files.values() for _, size, _ in states)
    done, names, arrays = 0, dict[str, str](), dict[str, NDArray[Any]]()
    for split, found in shards.items():
        walked: list[_Walked] = []
        for state, result in zip(files[split], _walk_all(found), strict=True):
            walked.append(result)
            names = {str(label): name for label, name in result.names.items()} | names
            done += state[1]
            if progress is not None:
                progress(done, total)
        arrays[split] = np.concatenate([result.rows for result in walked])
        if not len(arrays[split]):
            raise UserError(f"{found[0]} and its like hold no record: {_AGAIN}")
    made = Index(header={"files": files, "names": names}, arrays=arrays)
    if kept is None:
        return made
    write_index(kept, made)
    return read_index(kept) or made


def _state(shard: Path) -> list[Any]:
    state = shard.stat()
    return [str(shard), state.st_size, state.st_mtime_ns]


@dataclass(frozen=True, kw_only=True)
class _Walked:
    """A shard's records, and names of classes by stored label."""

    rows: NDArray[np.void]
    names: dict[int, str]


def _walk_all(shards: list[Path]) -> Iterator[_Walked]:
    """In order, some at a time."""
    with ThreadPoolExecutor(_WALKERS, thread_name_prefix="walk") as pool:
        futures = [pool.submit(_walk, shard, number) for number, shard in enumerate(shards)]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a failure the rest is not worth waiting for


def _walk(shard: Path, number: int) -> _Walked:
    rows, names = [], dict[int, str]()
    for offset, data, sound in _records(shard):
        label = _DAMAGED
        if sound:
            try:
                features = example(data)
            except BadImage as error:
                raise UserError(f"{shard}: the record at byte {offset} {error}") from None
            stored = integer_of(features, _LABEL)
            label = _NO_LABEL if stored is None else stored
            name = next(filter(None, (bytes_of(features, key) for key in _NAMES)), None)
            if name is not None and label not in names:
                names[label] = name.decode(errors="replace")
            if not _NO_LABEL <= label <= MOST_CLASSES:
                raise UserError(
                    f"{shard}: the record at byte {offset} has label {label}: labels begin at 0 or 1, and end at"
                    f" {MOST_CLASSES}"
                )
        rows.append((offset, len(data), number, label))
    return _Walked(rows=np.array(rows, dtype=ROW), names=names)


def _records(shard: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Where each record's Example begins, its bytes, and whether they match their checksum."""
    size = shard.stat().st_size
    with shard.open("rb", buffering=_BUFFER_BYTES) as file:
        while head := file.read(_HEAD.size):
            at = file.tell()
            if len(head) < _HEAD.size:
                raise UserError(f"{shard}: is cut off: {_AGAIN}")
            length, checksum = _HEAD.unpack(head)
            if masked_crc32c(head[:8]) != checksum:
                raise UserError(f"{shard}: is damaged at byte {at - len(head)}, or no TFRecord file: {_AGAIN}")
            data, tail = file.read(min(length, size - at)), file.read(_TAIL.size)
            if len(tail) < _TAIL.size:
                raise UserError(f"{shard}: is cut off: {_AGAIN}")
            yield at, data, masked_crc32c(data) == _TAIL.unpack(tail)[0]
