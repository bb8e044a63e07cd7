"""A folder behind a URL that fsspec understands: s3://, gs://, https:// and many more."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from fastselfie.errors import UserError
from fastselfie.pipelines.storage import FileState, Storage

_READERS = 32  # what hides a latency of some 30 ms


class RemoteFolder(Storage):
    """A folder behind a URL; each read is a request."""

    readers = _READERS

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
            data = self._here().cat_file(self._path(name), start=start, end=start + size)
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
