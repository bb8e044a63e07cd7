"""What a pass of `fastselfie.pipelines.prepare` leaves: the files that tie shards together, and what to tell of it."""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastselfie
from fastselfie.errors import UserError
from fastselfie.files import replace_bytes
from fastselfie.pipelines.packed_format import MANIFEST, REJECTED
from fastselfie.pipelines.shard_writer import ShardRecord, index_rows
from fastselfie.pipelines.source import Source


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a pass has made, interrupted or not; ``images_now`` and ``seconds`` are of this run alone.

    Attributes:
        images: packed, by split. copied: those of them that kept their pixels. rejected: reasons.
        before: whether it was complete before this run.
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
        lines += [f"  {self.copied} images kept their pixels, the others are JPEGs made anew"]
        lines += [f"  {count} rejected: {kind}" for kind, count in self.kinds_rejected().most_common()]
        if self.rejected:
            lines += [f"  {REJECTED} names them"]
        if not self.before:
            lines += [f"  {self.images_now / self.seconds:.1f} images/s"]
        return "\n".join(lines)

    def kinds_rejected(self) -> Counter[str]:
        """How often each reason was given, figures and what stands in brackets left out."""
        return Counter(re.sub(r"\d+", "N", re.sub(r" \(.*", "", reason)) for reason in self.rejected)


def complete(folder: Path, source: Source, plan: dict[str, Any], known: dict[str, list[ShardRecord]]) -> None:
    """Write what ties the shards together, the manifest last.

    Args:
        plan: all that decided the result. known: the records of all shards, by split.
    """
    splits = {split: _index(folder, split, records) for split, records in known.items()}
    rejected = [row for records in known.values() for record in records for row in record.rejected]
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("name", "reason"), *rejected])
    replace_bytes(folder / REJECTED, table.getvalue().encode(errors="surrogateescape"))
    every = [record for records in known.values() for record in records]
    made_by = {name: plan[name] for name in ("source", "fingerprint", "shard_bytes", "pillow")}
    made_by |= {"fastselfie": fastselfie.__version__, "bytes_read": sum(record.bytes_read for record in every)}
    manifest = {
        "format": plan["format"], "classes": list(source.classes), "splits": splits,
        "settings": {name: plan[name] for name in ("size", "quality", "side", "recode")},
        "made_by": made_by | {"copied": sum(record.copied for record in every)}, "rejected": len(rejected),
    }  # fmt: skip
    replace_bytes(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def _index(folder: Path, split: str, records: list[ShardRecord]) -> dict[str, Any]:
    """Write the split's index; its part of the manifest."""
    file = io.BytesIO()
    np.save(file, np.concatenate([index_rows(folder, record) for record in records]))
    name = f"{split}.npy"
    replace_bytes(folder / name, file.getvalue())
    return {
        "images": sum(record.images for record in records),
        "bytes": sum(record.bytes for record in records),
        "shards": [{"name": record.name, "bytes": record.bytes, "images": record.images} for record in records],
        "index": {"name": name, "crc32": zlib.crc32(file.getvalue())},
    }


def prepared(known: dict[str, list[ShardRecord]], source: Source, *, images_now: int, seconds: float) -> Prepared:
    """What the shards of those records hold; the others as in `Prepared`."""
    every = [record for records in known.values() for record in records]
    return Prepared(
        images={split: sum(record.images for record in records) for split, records in known.items()},
        copied=sum(record.copied for record in every), bytes_read=sum(record.bytes_read for record in every),
        bytes_written=sum(record.bytes for record in every), classes=len(source.classes),
        rejected=tuple(reason for record in every for _, reason in record.rejected),
        images_now=images_now, seconds=seconds,
    )  # fmt: skip


def made_before(folder: Path) -> tuple[dict[str, Any], Prepared]:
    """The plan by which an earlier run has completed the folder, and what it made.

    Raises:
        UserError: it is not what a run leaves.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        made_by, splits = manifest["made_by"], manifest["splits"]
        plan = {"format": manifest["format"], **manifest["settings"], **made_by}
        with (folder / REJECTED).open(newline="", errors="surrogateescape") as file:
            reasons = tuple(row["reason"] for row in csv.DictReader(file))
        return plan, Prepared(
            images={name: int(split["images"]) for name, split in splits.items()}, copied=int(made_by["copied"]),
            bytes_read=int(made_by["bytes_read"]), bytes_written=sum(int(split["bytes"]) for split in splits.values()),
            classes=len(manifest["classes"]), rejected=reasons, before=True,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, FileNotFoundError):
        raise UserError(f"DST {folder}: is not as prepare leaves a folder; choose another") from None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
