"""Where shards lie: a folder of this machine, or one behind a URL that fsspec understands."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, BinaryIO, TypeAlias

from fastselfie.errors import UserError

_MOST_OPEN = 256  # descriptors a process and folder; a process may have 1024 in all where nobody raised it
_REMOTE_READERS = 32  # what hides a latency of some 30 ms

FileState: TypeAlias = tuple[int, str]
"""A file's size in bytes, and a token that is another one when the file was written anew."""


class Storage(ABC):
    """The files that lie directly in one folder. Safe to use from several threads, and can be pickled.

    A file that is not there is a FileNotFoundError, any other failure another OSError.

    Attributes:
        place: the folder as the user named it. readers: see `fastselfie.pipelines.source.EncodedImages`.
    """

    place: str
    readers: int | None = None

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


class RemoteFolder(Storage):
    """A folder behind a URL; each read is a request."""

    readers = _REMOTE_READERS

    def __init__(self, url: str) -> None:
        """Raises `UserError` where fsspec knows no such URL or lacks a package for it."""
        self.place = url.rstrip("/")
        self._begin()

    @property
    def key(self) -> str:
        """See `Storage.key`."""
        return self.place

    def names(self) -> list[str]:
        """See `Storage.names`."""
        with _as_os_error(self.place):
            found = self._system.ls(self._root, detail=True)
        return sorted(PurePosixPath(entry["name"]).name for entry in found if entry["type"] == "file")

    def state(self, name: str) -> FileState:
        """See `Storage.state`."""
        with _as_os_error(name):
            about = self._system.info(self._path(name))
            token = about.get("ETag") or about.get("etag") or self._system.ukey(self._path(name))
        if about.get("size") is None:
            raise OSError(errno.EIO, f"the server does not tell the size of {name}")
        return int(about["size"]), str(token)

    def read(self, name: str, start: int, size: int) -> bytes:
        """See `Storage.read`."""
        with _as_os_error(name):
            data = self._here().cat_file(self._path(name), start, start + size)
        if len(data) > size:
            raise OSError(errno.EIO, "the server sends whole files where parts are asked for")
        return bytes(data)

    def whole(self, name: str) -> bytes:
        """See `Storage.whole`."""
        with _as_os_error(name):
            return bytes(self._here().cat_file(self._path(name)))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """See `Storage.open`."""
        with _as_os_error(name), self._here().open(self._path(name), "rb") as file:
            yield file

    def _begin(self) -> None:
        from fsspec import url_to_fs  # no local run needs it

        try:
            self._system, self._root = url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.place}: {error}") from None
        self._process = os.getpid()

    def _here(self) -> Any:
        """The file system of this process: connections do not survive a fork."""
        if self._process != os.getpid():
            self._begin()
        return self._system

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def __getstate__(self) -> str:
        return self.place

    def __setstate__(self, place: str) -> None:
        self.__init__(place)  # type: ignore[misc]


@contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """Whatever a client of some storage raises is an OSError with a text: each has exceptions of its own."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such file", what) from None
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error) or type(error).__name__) from error
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
