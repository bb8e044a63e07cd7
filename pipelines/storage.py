"""Where shards lie: what is asked of a folder wherever it is, and a folder of this machine."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import BinaryIO, TypeAlias

_MOST_OPEN = 256  # descriptors a process and folder; a process may have 1024 in all where nobody raised it

FileState: TypeAlias = tuple[int, str]
"""A file's size in bytes, and a token that is another one when the file was written anew."""


class Storage(ABC):
    """The files that lie directly in one folder. Safe to use from several threads, and can be pickled.

    A file that is not there is a FileNotFoundError, any other failure another OSError.

    Attributes:
        place: the folder as the user named it. readers, pauses_s: see `fastselfie.pipelines.source.EncodedImages`.
    """

    place: str
    readers: int | None = None
    pauses_s: tuple[float, ...] = (0.1, 0.5)

    @property
    @abstractmethod
    def key(self) -> str:
        """The same for the same folder, from wherever it is named."""

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return PurePosixPath(self.key).name

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all files, sorted."""

    @abstractmethod
    def state(self, name: str) -> FileState:
        """See `FileState`."""

    @abstractmethod
    def read(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer where the file ends before."""

    @abstractmethod
    def whole(self, name: str) -> bytes:
        """All bytes of a small file."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The file, for reading and seeking while the context lasts."""

    def check(self, name: str) -> None:  # noqa: B027 (most can)
        """Make sure that parts of a file can be read.

        Raises:
            UserError: the storage gives whole files alone.
        """


class LocalFolder(Storage):
    """A folder of this machine. Each file is opened once a process and read by position."""

    def __init__(self, folder: Path) -> None:
        self.place, self._folder = str(folder), folder
        self._begin()

    @property
    def key(self) -> str:
        """See `Storage.key`."""
        return str(self._folder.resolve())

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self._folder / name

    def names(self) -> list[str]:
        """See `Storage.names`."""
        with os.scandir(self._folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir())

    def state(self, name: str) -> FileState:
        """See `Storage.state`."""
        status = self.path(name).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe, one would wait until somebody writes to it
            raise OSError(errno.EINVAL, f"{name} is no regular file")
        return status.st_size, f"{status.st_ino}-{status.st_mtime_ns}"

    def read(self, name: str, start: int, size: int) -> bytes:
        """See `Storage.read`."""
        try:
            return self._descriptor(name).read(start, size)
        except OSError:
            with self._lock:  # a network file system may have forgotten the descriptor: another try opens it anew
                self._opened.pop(name, None)
            raise

    def whole(self, name: str) -> bytes:
        """See `Storage.whole`."""
        return self.path(name).read_bytes()

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See `Storage.open`."""
        return self.path(name).open("rb")

    def _begin(self) -> None:
        self._opened: dict[str, _Descriptor] = {}
        self._lock, self._process = Lock(), os.getpid()

    def _descriptor(self, name: str) -> _Descriptor:
        if self._process != os.getpid():  # forked, perhaps while another thread held the lock
            self._begin()
        found = self._opened.get(name)
        if found is None:
            found = _Descriptor(self.path(name))
            with self._lock:
                if name not in self._opened:  # another thread may have been quicker
                    while len(self._opened) >= _MOST_OPEN:
                        del self._opened[next(iter(self._opened))]
                    self._opened[name] = found
        return found

    def __getstate__(self) -> Path:
        return self._folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)  # type: ignore[misc]


class _Descriptor:
    """An open file, closed when the last thread that reads from it lets go."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDONLY)

    def read(self, start: int, size: int) -> bytes:
        data = os.pread(self._number, size, start)
        while data and len(data) < size:  # the system may give less at once; nothing is the file's end
            more = os.pread(self._number, size - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)
