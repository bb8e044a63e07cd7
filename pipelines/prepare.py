"""Packs a data set: every image checked, shrunk and written to shards, in one pass that may be killed at any moment.

The result depends on the source and the settings alone: not on the number of processes, nor on interruptions.
"""

from __future__ import annotations

import csv
import fcntl
import io
import itertools
import json
import os
import re
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

import fastselfie
from fastselfie.errors import UserError
from fastselfie.pipelines.cifar import SIZE as SMALL_SIZE
from fastselfie.pipelines.cifar import is_cifar10
from fastselfie.pipelines.downsampled_imagenet import is_imagenet32
from fastselfie.pipelines.packed_format import FORMAT, MANIFEST, REJECTED
from fastselfie.pipelines.shard_writer import (
    UNFINISHED,
    OpenShard,
    ShardRecord,
    finished_shards,
    index_rows,
    write_whole,
)
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.shrinking_pool import ShrinkingPool
from fastselfie.pipelines.source import EncodedImages, Source
from fastselfie.pipelines.sources import open_source

_PASS = "pass.json"
_AGAIN = "run the same command again: it goes on after the last finished shard"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a pass has made, interrupted or not; ``images_now`` and ``seconds`` are of this run alone.

    Attributes:
        images: packed, by split. copied: those of them that kept their bytes. rejected: reasons. before: whether it was
            complete before this run.
    """

    images: dict[str, int]
    copied: int
    bytes_read: int
    bytes_written: int
    classes: int
    rejected: tuple[str, ...]
    images_now: int = 0
    seconds: float = 0.0
    before: bool = False

    def told(self) -> str:
        """For the user, in a few lines."""
        counts = " and ".join(f"{count} images in {split}" for split, count in self.images.items())
        lines = [f"{'was packed before; ' if self.before else ''}{counts}, {self.classes or 'no'} classes"]
        lines += [f"  {_size(self.bytes_read)} read, {_size(self.bytes_written)} written"]
        lines += [f"  {self.copied} images kept their bytes, the others are JPEGs made anew"]
        lines += [f"  {count} rejected: {kind}" for kind, count in self.kinds_rejected().most_common()]
        if self.rejected:
            lines += [f"  {REJECTED} names them"]
        if not self.before:
            lines += [f"  {self.images_now / self.seconds:.1f} images/s"]
        return "\n".join(lines)

    def kinds_rejected(self) -> Counter[str]:
        """How often each reason was given, figures and what stands in brackets left out."""
        return Counter(re.sub(r"\d+", "N", re.sub(r" \(.*", "", reason)) for reason in self.rejected)


def open_encoded(spec: str) -> Source:
    """The data set that SRC names, of encoded images.

    Raises:
        UserError: it names none, or images so small that they are kept whole in memory.
    """
    try:
        if not _is_small(spec):
            source = open_source(spec, SMALL_SIZE)
            if isinstance(source.train, EncodedImages):
                return source
    except UserError as error:
        raise UserError(f"SRC: {str(error).removeprefix('--data: ')}") from None
    except OSError as error:
        raise UserError(f"SRC: {spec} cannot be read ({error.strerror or error}): check its permissions") from None
    raise UserError(f"SRC: {spec} has small images that training holds in memory whole: it needs no packing")


def _is_small(spec: str) -> bool:
    """Told without reading the images."""
    path = Path(os.path.expanduser(spec))
    return spec.partition(":")[0] == "synthetic" or (path.exists() and (is_cifar10(path) or is_imagenet32(path)))


def prepare(
    source: Source,
    folder: Path,
    *,
    shrinking: Shrinking,
    shard_bytes: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> Prepared:
    """Pack ``source`` into ``folder``, going on with what a killed pass has left there.

    Args:
        shard_bytes: of a shard at most. workers: processes that decode. progress: told how many images of how many are
            behind us, at the start and after every image.

    Raises:
        UserError: the folder holds something else, or a split no image; it cannot be written; see also
            `fastselfie.pipelines.shrinking_pool.ShrinkingPool.outcomes`.
    """
    began = time.monotonic()
    plan = _plan(source, shrinking, shard_bytes)
    splits = _splits(source)
    total = sum(len(images) for images in splits.values())
    try:
        if (folder / MANIFEST).exists():
            return _made_before(folder, plan)
        with _claimed(folder, plan):
            known = {split: finished_shards(folder, split) for split in splits}
            done = sum(records[-1].next_index for records in known.values() if records)
            count = itertools.count(done)
            progress(next(count), total)
            with ShrinkingPool(shrinking, workers) as pool:
                for split, images in splits.items():
                    _pack(
                        pool, folder, split, images, known[split], most_bytes=shard_bytes,
                        labelled=bool(source.classes), handled=lambda: progress(next(count), total),
                    )  # fmt: skip
            _complete(folder, source, plan, known)
    except OSError as error:
        raise UserError(
            f"DST {folder}: cannot be written ({error.strerror or error}); make room, or see to its permissions, and"
            f" {_AGAIN}"
        ) from None
    return _prepared(known, source, images_now=total - done, seconds=time.monotonic() - began)


def _splits(source: Source) -> dict[str, EncodedImages]:
    """By the name in the packed data set."""
    splits = {"train": source.train, "val": source.test}
    return {name: images for name, images in splits.items() if isinstance(images, EncodedImages)}


def _plan(source: Source, shrinking: Shrinking, shard_bytes: int) -> dict[str, Any]:
    """All that decides the result."""
    return {
        "format": FORMAT, "source": source.name, "fingerprint": source.fingerprint(), "size": shrinking.size,
        "side": shrinking.side, "quality": shrinking.quality, "shard_bytes": shard_bytes, "pillow": PIL.__version__,
    }  # fmt: skip


def _refuse_other(folder: Path, there: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raise `UserError` where what is ``there`` came of another plan."""
    for name in (name for name in plan if there.get(name) != plan[name]):
        was, asked = f"{name} {there.get(name)}", plan[name]
        if name in ("source", "fingerprint"):
            was, asked = f"other data ({there.get('source')})", f"{plan['source']} as it is now"
        raise UserError(f"DST {folder}: was packed from {was}, not {asked}; choose another folder, or delete that one")


@contextmanager
def _claimed(folder: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The folder for this process alone, new or with the same pass begun in it."""
    state = folder / UNFINISHED
    if folder.exists() and not state.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"DST {folder}: is not an empty folder; choose another")
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        _lock(lock.fileno(), folder)
        if (state / _PASS).exists():
            _refuse_other(folder, json.loads((state / _PASS).read_bytes()), plan)
        else:
            write_whole(state / _PASS, json.dumps(plan).encode())
        yield


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"DST {folder}: another process is packing into it; wait for that one") from None
    except OSError:
        return  # a file system without locks, as Lustre is mounted at times


def _pack(
    pool: ShrinkingPool, folder: Path, split: str, images: EncodedImages, known: list[ShardRecord], *, most_bytes: int,
    labelled: bool, handled: Callable[[], None],
) -> None:  # fmt: skip
    """Write the shards that ``known`` lacks, and add their records to it; ``handled`` is called after every image."""
    start = known[-1].next_index if known else 0
    if start == len(images):
        return

    def begin() -> OpenShard:
        first_key = sum(record.images for record in known)
        return OpenShard(folder, split=split, number=len(known), first_key=first_key, most_bytes=most_bytes)

    shard = begin()
    try:
        with closing(pool.outcomes(images, start)) as outcomes:
            for outcome in outcomes:
                if outcome.jpeg is not None and not shard.has_room(outcome.jpeg):
                    known.append(shard.finish(outcome.index))
                    shard = begin()
                if outcome.jpeg is None:
                    shard.record.rejected.append((images.name(outcome.index), outcome.reason))
                else:
                    shard.add(outcome.jpeg, int(images.labels_S[outcome.index]), labelled=labelled)
                shard.record.bytes_read += outcome.bytes_read
                shard.record.copied += outcome.copied
                handled()
        if shard.is_empty:
            name, reason = shard.record.rejected[0]
            raise UserError(f"SRC: no image of {split} can be used; the first: {name} {reason}")
        known.append(shard.finish(len(images)))
    finally:
        shard.drop()


def _complete(folder: Path, source: Source, plan: dict[str, Any], known: dict[str, list[ShardRecord]]) -> None:
    """Write what ties the shards together, the manifest last, and remove what only the pass needed."""
    splits = {split: _index(folder, split, records) for split, records in known.items()}
    rejected = [row for records in known.values() for record in records for row in record.rejected]
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("name", "reason"), *rejected])
    write_whole(folder / REJECTED, table.getvalue().encode(errors="surrogateescape"))
    every = [record for records in known.values() for record in records]
    made_by = {name: plan[name] for name in ("source", "fingerprint", "shard_bytes", "pillow")}
    made_by |= {"fastselfie": fastselfie.__version__, "bytes_read": sum(record.bytes_read for record in every)}
    manifest = {
        "format": FORMAT, "classes": list(source.classes), "splits": splits,
        "settings": {name: plan[name] for name in ("size", "quality", "side")},
        "made_by": made_by | {"copied": sum(record.copied for record in every)}, "rejected": len(rejected),
    }  # fmt: skip
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    shutil.rmtree(folder / UNFINISHED)


def _index(folder: Path, split: str, records: list[ShardRecord]) -> dict[str, Any]:
    """Write the split's index; its part of the manifest."""
    file = io.BytesIO()
    np.save(file, np.concatenate([index_rows(folder, record) for record in records]))
    name = f"{split}.npy"
    write_whole(folder / name, file.getvalue())
    return {
        "images": sum(record.images for record in records),
        "bytes": sum(record.bytes for record in records),
        "shards": [{"name": record.name, "bytes": record.bytes, "images": record.images} for record in records],
        "index": {"name": name, "crc32": zlib.crc32(file.getvalue())},
    }


def _prepared(known: dict[str, list[ShardRecord]], source: Source, *, images_now: int, seconds: float) -> Prepared:
    every = [record for records in known.values() for record in records]
    return Prepared(
        images={split: sum(record.images for record in records) for split, records in known.items()},
        copied=sum(record.copied for record in every), bytes_read=sum(record.bytes_read for record in every),
        bytes_written=sum(record.bytes for record in every), classes=len(source.classes),
        rejected=tuple(reason for record in every for _, reason in record.rejected),
        images_now=images_now, seconds=seconds,
    )  # fmt: skip


def _made_before(folder: Path, plan: dict[str, Any]) -> Prepared:
    """What an earlier run has completed, with whatever Pillow."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        made_by, splits = manifest["made_by"], manifest["splits"]
        _refuse_other(folder, manifest | made_by | manifest["settings"] | {"pillow": plan["pillow"]}, plan)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # of a process killed after its last word
        with (folder / REJECTED).open(newline="", errors="surrogateescape") as file:
            reasons = tuple(row["reason"] for row in csv.DictReader(file))
        return Prepared(
            images={name: split["images"] for name, split in splits.items()}, copied=made_by["copied"],
            bytes_read=made_by["bytes_read"], bytes_written=sum(split["bytes"] for split in splits.values()),
            classes=len(manifest["classes"]), rejected=reasons, before=True,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        raise UserError(f"DST {folder}: its {MANIFEST} was not written by prepare; choose another folder") from None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
