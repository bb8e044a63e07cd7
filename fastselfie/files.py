"""Files that are either whole or not there, and locks that one process at a time holds."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"
"""The file in a folder by which a process has it for itself."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write and flush to the disk; for files in a folder that does not count yet."""
    with path.open("wb") as file:
        file.write(data)
        flush_to_disk(file)


def flush_to_disk(file: IO[bytes]) -> None:
    """Past all buffers: a file that a power cut leaves empty must not be taken for a finished one."""
    file.flush()
    os.fsync(file.fileno())


def replace_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file of ``data``: a crash leaves the old one or the new one, a full disk the old one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_bytes(partial, data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_json(path: Path, value: dict[str, Any]) -> None:
    """`replace_bytes` of ``value`` as indented JSON."""
    replace_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def occupied(folder: Path) -> bool:
    """Whether anything but an empty folder is there already. Hidden files do not count: a killed start leaves some."""
    return folder.exists() and (not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir()))


@contextmanager
def held(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the file ``lock``, made where it is missing, for the block; yields False where another process holds it.

    A file system without locks, as Lustre is mounted at times, lets everybody in.

    Args:
        wait: until no other process holds it.
    """
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = True
        except OSError as error:
            free = not isinstance(error, BlockingIOError)
        yield free


def sync_folder(path: Path) -> None:
    """Make renames inside the folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
