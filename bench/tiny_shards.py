"""Packed shards of as many tiny images as wanted, in seconds: a few hundred JPEG images over and over, each time under
a name of its own. Written from the format's description, with NumPy in place of a tar library.

Shapes: P periods at a time, each of J images and L bytes; 9 digits a name.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastselfie.pipelines.packed_format import ENTRY, FORMAT, MANIFEST
from fastselfie.pipelines.synthetic import synthetic_source

SIDE = 32
DISTINCT = 250
_A_SHARD = 100_000
_AT_ONCE = 100  # periods
_BLOCK, _CHECKSUM = tarfile.BLOCKSIZE, 148  # of a header, and where its checksum is in there
_DIGITS = 10 ** np.arange(8, -1, -1)
_END = bytes(2 * _BLOCK)


def write_tiny_shards(folder: Path, images: int) -> None:
    """A folder of ``images`` unlabelled images, a multiple of `DISTINCT`, `SIDE` pixels a side."""
    assert images % DISTINCT == 0
    period = _Period([_jpeg(image) for image in synthetic_source(SIDE, train=DISTINCT).train.images_SHW3])
    folder.mkdir(parents=True)
    entries, shards = np.zeros(images, dtype=ENTRY), list[dict[str, Any]]()
    for number, first in enumerate(range(0, images, _A_SHARD)):
        count = min(_A_SHARD, images - first)
        path = folder / f"train-{number:06d}.tar"
        with path.open("wb") as file:
            for start in range(first, first + count, _AT_ONCE * DISTINCT):
                stop = min(start + _AT_ONCE * DISTINCT, first + count)
                file.write(period.members(start, (stop - start) // DISTINCT).data)
            file.write(_END)
        entries[first : first + count] = period.entries(number, count // DISTINCT)
        shards.append({"name": path.name, "bytes": path.stat().st_size, "images": count})
    np.save(folder / "train.npy", entries)
    index = {"name": "train.npy", "crc32": zlib.crc32((folder / "train.npy").read_bytes())}
    split = {"images": images, "bytes": int(entries["size"].sum()), "shards": shards, "index": index}
    manifest = {"format": FORMAT, "classes": [], "splits": {"train": split}, "settings": {}, "made_by": {}}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "rejected": 0}))


class _Period:
    """The members of the distinct images, one after the other, with names to be filled in."""

    def __init__(self, encoded: list[bytes]) -> None:
        headers = [_header(len(data)) for data in encoded]
        members = [header + data + bytes(-len(data) % _BLOCK) for header, data in zip(headers, encoded, strict=True)]
        self._bytes_L = np.frombuffer(b"".join(members), dtype=np.uint8)
        self._starts_J = np.cumsum([0, *map(len, members)])[:-1]
        # A header's checksum is the sum of its bytes; the digits of the name come on top of this one's zeros.
        self._checksum_J = np.array([int(header[_CHECKSUM : _CHECKSUM + 6], 8) for header in headers])
        self._rows_J = np.zeros(len(encoded), dtype=ENTRY)
        self._rows_J["offset"] = self._starts_J + _BLOCK
        self._rows_J["size"] = [len(data) for data in encoded]
        self._rows_J["checksum"] = [zlib.crc32(data) for data in encoded]

    def members(self, first: int, periods: int) -> NDArray[np.uint8]:
        """uint8 (P, L), of images ``first`` and following."""
        bytes_PL = np.tile(self._bytes_L, (periods, 1))
        index_PJ = first + np.arange(periods * DISTINCT).reshape(periods, DISTINCT)
        digits_PJ9 = index_PJ[:, :, None] // _DIGITS % 10
        checksum_PJ = self._checksum_J + digits_PJ9.sum(axis=2)
        octal_PJ6 = checksum_PJ[:, :, None] >> np.arange(15, -1, -3) & 7
        for digits, at in ((digits_PJ9, 0), (octal_PJ6, _CHECKSUM)):
            places = self._starts_J[:, None] + at + np.arange(digits.shape[2])
            bytes_PL[:, places.ravel()] = ord("0") + digits.reshape(periods, -1)
        return bytes_PL

    def entries(self, shard: int, periods: int) -> NDArray[np.void]:
        """The index of a shard of that many periods."""
        rows = np.tile(self._rows_J, periods)
        rows["offset"] += np.repeat(np.arange(periods) * len(self._bytes_L), DISTINCT)
        rows["shard"] = shard
        return rows


def _jpeg(image_HW3: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_HW3).save(file, "JPEG", quality=85)
    return file.getvalue()


def _header(size: int) -> bytes:
    member = tarfile.TarInfo(f"{0:09d}.jpg")
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)
