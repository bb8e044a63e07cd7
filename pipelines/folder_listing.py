"""What lies in the folders of a tree, remembered from one start to the next: listing a million files takes minutes on a
slow disk, asking a thousand folders whether they changed takes no time.

A folder changes its time of modification when a name in it is added, removed or renamed; what is in a file does not
count. Times are as coarse as 2 s on some file systems, so one that was modified that shortly before it was listed may
have changed once more without a trace, and is listed again.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastselfie.errors import UserError
from fastselfie.pipelines.formats import is_image, other_suffix
from fastselfie.pipelines.index_file import Index, index_path, read_index, write_index

_FORMAT = 1  # of the index: another one is made anew
_COARSEST_NS = 2_000_000_000
_WORTHWHILE = 10_000  # files; fewer are listed in no time


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What lies directly in a folder; hidden files and folders do not count.

    Attributes:
        images: the names of JPEG and PNG files, sorted, as bytes with a zero byte between each two. count: of them.
        folders: the names of folders, sorted. others: how many images of other formats there are, by suffix.
    """

    images: bytes
    count: int
    folders: tuple[str, ...]
    others: dict[str, int]

    def first(self) -> str:
        """The first of the images."""
        return os.fsdecode(self.images.partition(b"\0")[0])


@dataclass(frozen=True, kw_only=True)
class _Known:
    """Contents, and the state of the folder when they were listed: its i-node, and two times in ns."""

    contents: Contents
    inode: int
    modified: int
    listed: int

    def holds(self, status: os.stat_result) -> bool:
        """Whether a folder that is in that state now has the same contents."""
        settled = self.modified < self.listed - _COARSEST_NS
        return settled and (status.st_ino, status.st_mtime_ns) == (self.inode, self.modified)


class FolderListing:
    """The folders below a root, each listed when it is first asked for."""

    def __init__(self, root: Path, index: Path | None, every: bool = False) -> None:
        """Args: index: where contents are kept; None to keep none. every: see `is_image`; nothing is kept then."""
        self._root = root
        self._every = every
        self._path = None if index is None or every else index_path(index, "folders", str(root.resolve()))
        self._before = _load(self._path) if self._path is not None else {}
        self._seen: dict[str, _Known] = {}

    def contents(self, folder: str) -> Contents:
        """What lies directly in ``folder``, which is relative to the root. Raises OSError where it cannot be listed."""
        if folder not in self._seen:
            path = self._root / folder
            known = self._before.get(folder)
            if known is None or not known.holds(path.stat()):
                known = _listed(path, self._every)
            self._seen[folder] = known
        return self._seen[folder].contents

    def others(self) -> Counter[str]:
        """How many images of other formats there are in the folders asked for, by suffix."""
        total = Counter[str]()
        for known in self._seen.values():
            total.update(known.contents.others)
        return total

    def keep(self) -> None:
        """Remember the folders asked for, if there are many files. Raises `UserError` where that is impossible."""
        many = sum(known.contents.count for known in self._seen.values()) >= _WORTHWHILE
        if self._path is not None and many and self._seen != self._before:
            _save(self._path, self._seen)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one. A link that leads nowhere is a file, which cannot be read.

    Raises:
        OSError: that cannot be told, and its name is no image's.
    """
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        if is_image(entry.name, every=True):
            return False
        raise


def _leads_back(path: str) -> bool:
    """Whether the folder to which this link leads holds the link: what is below it would be there without end."""
    target = os.path.realpath(path)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(path))]) == target


def _listed(path: Path, every: bool) -> _Known:
    listed, status = time.time_ns(), path.stat()  # both from before: what changes meanwhile is listed again
    images, folders, others = [], [], Counter[str]()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_folder(entry):
                if entry.is_symlink() and _leads_back(entry.path):
                    raise UserError(f"{entry.path}: is a link to a folder that it lies in; remove it")
                folders.append(entry.name)
            elif is_image(entry.name, every):
                images.append(entry.name)
            elif suffix := other_suffix(entry.name):
                others[suffix] += 1
    joined = b"\0".join(os.fsencode(name) for name in sorted(images))
    contents = Contents(images=joined, count=len(images), folders=tuple(sorted(folders)), others=dict(others))
    return _Known(contents=contents, inode=status.st_ino, modified=status.st_mtime_ns, listed=listed)


def _save(path: Path, known: dict[str, _Known]) -> None:
    rows: list[list[Any]] = []
    for folder, one in known.items():
        about = one.contents
        rows.append([folder, one.inode, one.modified, one.listed, about.count, about.folders, about.others])
    ends = np.cumsum([0, *(len(one.contents.images) for one in known.values())])
    names = np.frombuffer(b"".join(one.contents.images for one in known.values()), dtype=np.uint8)
    write_index(path, Index(header={"format": _FORMAT, "folders": rows}, arrays={"names": names, "ends": ends}))


def _load(path: Path) -> dict[str, _Known]:
    index = read_index(path)
    if index is None or index.header["format"] != _FORMAT:
        return {}
    names, known = index.arrays["names"].tobytes(), {}
    places = pairwise(index.arrays["ends"].tolist())
    for row, (start, stop) in zip(index.header["folders"], places, strict=True):
        folder, inode, modified, listed, count, folders, others = row
        contents = Contents(images=names[start:stop], count=count, folders=tuple(folders), others=others)
        known[folder] = _Known(contents=contents, inode=inode, modified=modified, listed=listed)
    return known
