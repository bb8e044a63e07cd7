"""Packed shards, written by `tarfile` from the format's description, without the program's own writer or reader."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROW = [("offset", "<i8"), ("size", "<i4"), ("shard", "<i4"), ("label", "<i4"), ("checksum", "<u4")]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A plain file of that name and content."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_split(
    folder: Path, split: str, images: Sequence[bytes], labels: Sequence[int] | None, a_shard: int
) -> dict[str, Any]:
    """Tars of ``a_shard`` images each, and their index; the manifest's part on them."""
    rows, shards = list[tuple[int, ...]](), list[dict[str, Any]]()
    for number, first in enumerate(range(0, len(images), a_shard)):
        path, part = folder / f"{split}-{number:06d}.tar", range(first, min(first + a_shard, len(images)))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in part:
                add(tar, f"{index:09d}.jpg", images[index])
                if labels is not None:
                    add(tar, f"{index:09d}.cls", str(labels[index]).encode())
        with tarfile.open(path) as tar:
            for index in part:
                member, data = tar.getmember(f"{index:09d}.jpg"), images[index]
                label = 0 if labels is None else labels[index]
                rows.append((member.offset_data, len(data), number, label, zlib.crc32(data)))
        shards.append({"name": path.name, "bytes": path.stat().st_size, "images": len(part)})
    np.save(folder / f"{split}.npy", np.array(rows, dtype=ROW))
    about = {"name": f"{split}.npy", "crc32": zlib.crc32((folder / f"{split}.npy").read_bytes())}
    return {"images": len(images), "bytes": sum(map(len, images)), "shards": shards, "index": about}


def write_packed(
    folder: Path, train: Sequence[bytes], val: Sequence[bytes] = (), *, labels: Sequence[int] | None = None,
    val_labels: Sequence[int] | None = None, classes: Sequence[str] = (), a_shard: int = 3,
) -> Path:  # fmt: skip
    """The whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": write_split(folder, "train", train, labels, a_shard)}
    if val:
        splits["val"] = write_split(folder, "val", val, val_labels, a_shard)
    manifest = {"format": 1, "classes": list(classes), "splits": splits, "settings": {}, "made_by": {}, "rejected": 0}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


def change_manifest(folder: Path, **changes: Any) -> None:
    """Replace values of the manifest, at the top or by a dotted path such as ``splits.train.images``; dots as __."""
    manifest = json.loads((folder / "dataset.json").read_text())
    for path, value in changes.items():
        *above, last = path.split("__")
        part = manifest
        for name in above:
            part = part[name]
        part[last] = value
    (folder / "dataset.json").write_text(json.dumps(manifest))
