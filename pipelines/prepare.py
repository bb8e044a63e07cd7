"""Packs a data set: every image checked, shrunk and written to shards, in one pass that may be killed at any moment.

The result depends on the source and the settings alone: not on the number of processes, nor on interruptions.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import PIL

from fastselfie.errors import UserError
from fastselfie.files import held, replace_bytes
from fastselfie.pipelines.cifar import SIZE as SMALL_SIZE
from fastselfie.pipelines.cifar import is_cifar10
from fastselfie.pipelines.downsampled_imagenet import is_imagenet32
from fastselfie.pipelines.packed_format import FORMAT, MANIFEST
from fastselfie.pipelines.prepare_result import Prepared, complete, made_before, prepared
from fastselfie.pipelines.shard_writer import UNFINISHED, OpenShard, ShardRecord, finished_shards
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.shrinking_pool import ShrinkingPool
from fastselfie.pipelines.source import EncodedImages, Source
from fastselfie.pipelines.sources import open_source

_PASS = "pass.json"
_AGAIN = "run the same command again: it goes on after the last finished shard"


def open_encoded(spec: str) -> Source:
    """The data set that SRC names, of encoded images.

    Raises:
        UserError: it names none, or images so small that they are kept whole in memory.
    """
    try:
        if not _is_small(spec):
            source = open_source(spec, SMALL_SIZE, every_format=True)
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
            there, result = made_before(folder)
            _refuse_other(folder, there | {"pillow": plan["pillow"]}, plan)  # by whatever Pillow
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # of a process killed after its last word
            return result
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
            complete(folder, source, plan, known)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # NFS keeps a folder while the lock in it is open
    except OSError as error:
        raise UserError(
            f"DST {folder}: cannot be written ({error.strerror or error}); make room, or see to its permissions, and"
            f" {_AGAIN}"
        ) from None
    return prepared(known, source, images_now=total - done, seconds=time.monotonic() - began)


def _splits(source: Source) -> dict[str, EncodedImages]:
    """By the name in the packed data set."""
    splits = {"train": source.train, "val": source.test}
    return {name: images for name, images in splits.items() if isinstance(images, EncodedImages)}


def _plan(source: Source, shrinking: Shrinking, shard_bytes: int) -> dict[str, Any]:
    """All that decides the result."""
    return {
        "format": FORMAT, "source": source.name, "fingerprint": source.fingerprint(), "size": shrinking.size,
        "side": shrinking.side, "quality": shrinking.quality, "recode": shrinking.recode, "shard_bytes": shard_bytes,
        "pillow": PIL.__version__,
    }  # fmt: skip


def _refuse_other(folder: Path, there: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raise `UserError` where what is ``there`` came of another plan."""
    for name in (name for name in plan if there.get(name) != plan[name]):
        was, asked = f"with {_said(name, there.get(name))}", _said(name, plan[name])
        if name in ("source", "fingerprint"):
            was, asked = f"from other data ({there.get('source')})", f"{plan['source']} as it is now"
        raise UserError(f"DST {folder}: was packed {was}, not {asked}; choose another folder, or delete that one")


def _said(name: str, value: Any) -> str:
    """A part of a plan as the user knows it."""
    if name == "shard_bytes" and isinstance(value, int):
        return f"--shard-mb {value / (1 << 20):g}"
    return f"--{name} {value}" if name in ("size", "side", "quality", "recode") else f"{name} {value}"


@contextmanager
def _claimed(folder: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The folder for this process alone, new or with the same pass begun in it."""
    state = folder / UNFINISHED
    if folder.exists() and not state.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"DST {folder}: is not an empty folder; choose another")
    state.mkdir(parents=True, exist_ok=True)
    with held(state / "lock") as free:
        if not free:
            raise UserError(f"DST {folder}: another process is packing into it; wait for that one")
        if (state / _PASS).exists():
            _refuse_other(folder, _begun(folder), plan)
        else:
            replace_bytes(state / _PASS, json.dumps(plan).encode())
        yield


def _begun(folder: Path) -> dict[str, Any]:
    """The plan of the pass that was begun there."""
    try:
        return dict(json.loads((folder / UNFINISHED / _PASS).read_bytes()))
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"DST {folder}: {UNFINISHED}/{_PASS} is damaged; delete that folder") from None


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
