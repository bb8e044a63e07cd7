"""A folder behind a URL that fsspec understands: s3://, gs://, https:// and many more."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

from fastselfie.errors import LocalError
from fastselfie.pipelines.remote_client import READERS, ask, client, read_part
from fastselfie.pipelines.remote_errors import as_os_error
from fastselfie.pipelines.storage import FileState, Storage

T = TypeVar("T")

_AHEAD = 1 << 22  # bytes asked for at once where a file is read through
_LISTING_S = 300.0  # a thousand names come in an answer
_PAUSES_S = (0.5, 2.0)  # before the second and the third try of what is asked while a data set is opened

# File systems that a fork has brought along. Closed here, they would close what the process forked from waits on.
_INHERITED: list[Any] = []


class RemoteFolder(Storage):
    """A folder behind a URL; each read is one request of the bytes that are asked for."""

    readers = READERS
    pauses_s = (0.5, 2.0, 4.0, 8.0, 14.0, 14.0)  # a server that starts anew takes that long

    def __init__(self, url: str) -> None:
        """Raises `fastselfie.errors.UserError` where fsspec knows no such URL or lacks a package for it."""
        self.place = url.rstrip("/")
        self._begin()

    @property
    def key(self) -> str:
        """See `Storage.key`."""
        return self.place

    def names(self) -> list[str]:
        """See `Storage.names`."""
        found = _insist(self.place, lambda: ask(self._here(), "ls", self._root, detail=True, patience_s=_LISTING_S))
        return sorted(PurePosixPath(entry["name"]).name for entry in found if entry["type"] == "file")

    def state(self, name: str) -> FileState:
        """See `Storage.state`."""
        about = _insist(name, lambda: ask(self._here(), "info", self._path(name)))
        if about.get("size") is None:
            raise OSError(errno.EIO, f"the server does not tell the size of {name}")
        told = (about.get(mark) for mark in ("ETag", "etag", "Last-Modified"))
        return int(about["size"]), str(next(filter(None, told), None) or self._system.ukey(self._path(name)))

    def check(self, name: str) -> None:
        """See `Storage.check`."""
        self.part(name, 1, 1)

    def read(self, name: str, start: int, size: int) -> bytes:
        """See `Storage.read`."""
        with as_os_error(name):
            return self._part(name, start, size)

    def whole(self, name: str) -> bytes:
        """See `Storage.whole`."""
        size, _ = self.state(name)
        return self.part(name, 0, size)

    def open(self, name: str) -> BinaryIO:
        """See `Storage.open`."""
        return io.BufferedReader(_RemoteFile(self, name), _AHEAD)

    def part(self, name: str, start: int, size: int) -> bytes:
        """As `read`, with further tries where the storage fails."""
        return _insist(name, lambda: self._part(name, start, size))

    def _part(self, name: str, start: int, size: int) -> bytes:
        """One try to read."""
        system, path = self._here(), self._path(name)
        data = read_part(system, path, start, size)
        if data is None:
            raise LocalError(
                f"{self.place}: the server sends whole files where parts are asked for: take one that answers Range"
                " requests, or copy the folder to this machine"
            )
        if len(data) < size:
            system.invalidate_cache()
            if ask(system, "info", path)["size"] >= start + size:  # else it is the file's end
                raise OSError(errno.EIO, "the answer was cut off")
        return data

    def _begin(self) -> None:
        self._system, self._root = client(self.place)
        self._process = os.getpid()

    def _here(self) -> Any:
        """The file system of this process: connections do not survive a fork."""
        if self._process != os.getpid():
            _INHERITED.append(self._system)
            self._begin()
        return self._system

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def __getstate__(self) -> str:
        return self.place

    def __setstate__(self, place: str) -> None:
        self.__init__(place)  # type: ignore[misc]


class _RemoteFile(io.RawIOBase):
    """A file of a `RemoteFolder`. Those of fsspec's clients wait for as long as the clients do."""

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self._folder, self._name, self._at = folder, name, 0
        self._size, _ = folder.state(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._folder.part(self._name, self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _insist(what: str, attempt: Callable[[], T]) -> T:
    """An answer, asked for again where the storage fails: one of many requests may, and none opens a data set."""
    for pause_s in _PAUSES_S:
        try:
            with as_os_error(what):
                return attempt()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            time.sleep(pause_s)
    with as_os_error(what):
        return attempt()
