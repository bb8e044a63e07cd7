"""What was found out about a data set, kept in one file: a header of JSON, and arrays that are mapped into memory.

A file is whole or not there, whatever ends a process, and several processes may write the same one at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import dtype_to_descr
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.files import flush_to_disk
from fastselfie.pipelines.checksum import crc32

_MAGIC = b"fastselfie index 1\n"
_ALIGNED = 64
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Index:
    """A header of whatever JSON holds, and arrays by name: bytes, integers or rows of them."""

    header: dict[str, Any]
    arrays: Mapping[str, NDArray[Any]]


def index_path(folder: Path, kind: str, place: str) -> Path:
    """Where in ``folder`` the index of what lies at ``place`` is kept."""
    return folder / f"{kind}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:20]}.index"


@contextmanager
def one_maker(path: Path) -> Iterator[None]:
    """While the context lasts no other process of this machine makes an index in the folder of ``path``.

    Of the processes of a run one finds out what lies behind a URL, and the others take it from the folder.
    """
    descriptor, new = None, not path.parent.exists()
    with suppress(OSError):  # no folder can be made, of which `keep_bytes` tells; or a file system without locks
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        if new:
            with suppress(OSError):  # there is something in it
                path.parent.rmdir()


def write_index(path: Path, index: Index, *, replace: bool = True) -> None:
    """Write ``index`` to ``path`` atomically; ``replace`` as in `keep_bytes`."""
    places: dict[str, dict[str, Any]] = {}
    at = 0
    for name, array in index.arrays.items():
        places[name] = {"offset": at, "shape": array.shape, "dtype": dtype_to_descr(array.dtype)}
        places[name]["crc32"] = _checksum(array)
        at += -(-array.nbytes // _ALIGNED) * _ALIGNED
    header = json.dumps({"header": index.header, "arrays": places, "bytes": at}).encode()
    begin = _MAGIC + len(header).to_bytes(8, "little") + crc32(header).to_bytes(4, "little") + header
    padding = -len(begin) % _ALIGNED
    parts = [begin, bytes(padding)]
    for array in index.arrays.values():
        parts += [array.tobytes(), bytes(-array.nbytes % _ALIGNED)]
    keep_bytes(path, parts, replace=replace)


def keep_bytes(path: Path, parts: list[bytes], *, replace: bool) -> None:
    """Make a file of ``parts`` at once.

    Args:
        replace: overwrite a file that is there. If False, one that another process wrote meanwhile stays: another
            machine may have it mapped, and a network file system takes a replaced file away from under it.

    Raises:
        UserError: it cannot be kept there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)  # for those who may read the folder
                file.writelines(parts)
                flush_to_disk(file)
            _put(partial, path, replace)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    except OSError as error:
        raise UserError(
            f"{path.parent}: the index of the images cannot be kept there ({error.strerror}): make room, or make it"
            " a folder that may be written to"
        ) from None


def _put(partial: str, path: Path, replace: bool) -> None:
    if not replace:
        try:
            os.link(partial, path)
            return
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            pass
    os.replace(partial, path)


def read_index(path: Path) -> Index | None:
    """The index in ``path``, its arrays mapped; None where there is none or a damaged one.

    Raises:
        UserError: there is one that may not be read.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            size, checksum = int.from_bytes(file.read(8), "little"), int.from_bytes(file.read(4), "little")
            text = file.read(min(size, path.stat().st_size))
            begin = -(-file.tell() // _ALIGNED) * _ALIGNED
        if len(text) != size or crc32(text) != checksum:
            return None
        parsed = json.loads(text)
        if path.stat().st_size != begin + parsed["bytes"]:
            return None
        arrays = {name: _mapped(path, begin, place) for name, place in parsed["arrays"].items()}
        if any(_checksum(array) != parsed["arrays"][name]["crc32"] for name, array in arrays.items()):
            return None
        return Index(header=parsed["header"], arrays=arrays)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: the index of the images cannot be read ({error.strerror}): remove it") from None
    except Exception:  # what its checksum covers is no header, or a shorter file is in its place by now
        return None


def _mapped(path: Path, begin: int, place: dict[str, Any]) -> NDArray[Any]:
    described = place["dtype"]
    dtype = np.dtype(described if isinstance(described, str) else [tuple(field) for field in described])
    if 0 in place["shape"]:
        return np.empty(place["shape"], dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=begin + place["offset"], shape=tuple(place["shape"]))


def _checksum(array: NDArray[Any]) -> int:
    """Read piece by piece: an array may be larger than the memory."""
    flat, checksum = np.ascontiguousarray(array).view(np.uint8).reshape(-1), 0
    for start in range(0, len(flat), _CHUNK):
        checksum = crc32(flat[start : start + _CHUNK].data, checksum)
    return checksum
