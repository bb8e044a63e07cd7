"""What ``--data`` may name, and which reader each goes to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fastselfie.errors import UserError
from fastselfie.failing import speaks
from fastselfie.pipelines.cifar import SIZE as SMALL_SIZE
from fastselfie.pipelines.cifar import is_cifar10, read_cifar10
from fastselfie.pipelines.download import cifar10_archive
from fastselfie.pipelines.downsampled_imagenet import is_imagenet32, read_imagenet32
from fastselfie.pipelines.image_folder import is_image_folder, read_image_folder
from fastselfie.pipelines.list_file import is_list, read_list
from fastselfie.pipelines.packed import is_packed, read_packed
from fastselfie.pipelines.parquet import is_parquet, read_parquet
from fastselfie.pipelines.remote_folder import RemoteFolder
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.storage import LocalFolder, Storage
from fastselfie.pipelines.synthetic import CLASSES, synthetic_source
from fastselfie.pipelines.tfrecord import is_tfrecord, read_tfrecord
from fastselfie.pipelines.webdataset import is_webdataset, read_webdataset


def _read_tfrecord(path: Path, index: Path | None) -> Source:
    """Without an index all of the shards are read once, for their labels: minutes, of which the user is told."""
    if not speaks():
        return read_tfrecord(path, index)
    from fastselfie.progress import meter  # here alone

    with meter("reading labels, bytes") as read:
        return read_tfrecord(path, index, read.at)


# Images of one size, whole in memory.
_RESIDENT: tuple[tuple[Callable[[Path], bool], Callable[[Path], Source]], ...] = (
    (is_cifar10, read_cifar10),
    (is_imagenet32, read_imagenet32),
)
# Images of any size in shards, in a folder or behind a URL.
_SHARDS: tuple[tuple[Callable[[Storage], bool], Callable[[Storage, Path | None], Source]], ...] = (
    (is_packed, read_packed),
    (is_webdataset, read_webdataset),
)
# Images of any size in files of this machine. The first that knows a path takes it.
_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Path, Path | None], Source]], ...] = (
    (is_list, lambda path, index: read_list(path)),
    (is_parquet, lambda path, index: read_parquet(path)),
    (is_tfrecord, _read_tfrecord),
)
_UNDERSTOOD = (
    "give a folder of JPEG or PNG files (train/ and val/ with class folders, or flat), a list of files (.txt), a folder"
    " or URL of packed shards or WebDataset tar files, a folder of Parquet or TFRecord files, a cifar-10-batches-py"
    " folder or its tar.gz, a folder of downsampled-ImageNet 32x32 batches, or synthetic"
)
_MAX_SCENES = 1_000_000


def fetch(spec: str | None, size: int) -> None:
    """Download what ``--data`` names if that is needed, so that the processes of a machine need not all do so.

    Args and errors as in `open_source`.
    """
    if spec is None:
        try:
            _check_default(size)
            cifar10_archive()
        except UserError as error:
            raise UserError(f"--data: {error}") from None


def open_source(spec: str | None, size: int, index: Path | None = None, every_format: bool = False) -> Source:
    """The data set that ``--data`` names: small images whole in memory, or encoded ones read one by one.

    Args:
        spec: a path or URL; "synthetic" or "synthetic:N" for N training scenes; None for CIFAR-10, downloaded once.
        size: the pixels a side that the recipe wants; asked of images in memory alone.
        index: a folder for what takes long to find out, to be quick the next time: the listing of class folders, the
            index of WebDataset tar files, and copies of remote indices. None to keep nothing.
        every_format: of folders of images list those too that only ``fastselfie prepare`` reads.

    Raises:
        UserError: one line that begins with ``--data``.
    """
    try:
        if spec is None:
            _check_default(size)
            return read_cifar10(cifar10_archive())
        if spec == "synthetic" or spec.startswith("synthetic:"):
            return _open_synthetic(spec, size)
        if "://" in spec and not spec.startswith("file://"):
            return _open_url(spec, index)
        return _open_path(spec.removeprefix("file://"), size, index, every_format)
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    except OSError as error:
        raise UserError(f"--data: {spec} cannot be read ({error.strerror or error}): check its permissions") from None


def _open_synthetic(spec: str, size: int) -> Source:
    if spec == "synthetic":
        return synthetic_source(size)
    count = spec.removeprefix("synthetic:")
    if not re.fullmatch(r"[0-9]{1,7}", count) or not len(CLASSES) <= int(count) <= _MAX_SCENES:
        raise UserError(f"{spec}: give a whole number from {len(CLASSES)} to {_MAX_SCENES}, as in synthetic:4096")
    train = int(count)
    return synthetic_source(size, train=train, test=max(train // 4, len(CLASSES)))


def _open_url(spec: str, index: Path | None) -> Source:
    storage = RemoteFolder(spec)
    try:
        for is_kind, read in _SHARDS:
            if is_kind(storage):
                return read(storage, index)
    except FileNotFoundError:
        raise UserError(f"{spec} does not exist: {_UNDERSTOOD}") from None
    except PermissionError as error:
        raise UserError(f"{spec} may not be read ({error.strerror}): see to the credentials and their rights") from None
    except OSError as error:
        raise UserError(
            f"{spec} cannot be read ({error.strerror or error}): see to the server, its address and the network"
        ) from None
    raise UserError(f"{spec} holds neither packed shards nor tar files: {_UNDERSTOOD}")


def _open_path(spec: str, size: int, index: Path | None, every_format: bool) -> Source:
    try:
        path = Path(spec).expanduser()
    except RuntimeError:
        raise UserError(f"{spec}: there is no such user's home; give the whole path") from None
    if not spec or not path.exists():
        raise UserError(f"{spec!r} does not exist: {_UNDERSTOOD}")
    for is_kind, read in _RESIDENT:
        if is_kind(path):
            _check_size(str(path), size)  # before minutes are spent on reading
            return read(path)
    if path.is_dir():
        if not any(path.iterdir()):
            raise UserError(f"{path} is an empty folder: {_UNDERSTOOD}")
        for is_shards, read_shards in _SHARDS:
            if is_shards(LocalFolder(path)):
                return read_shards(LocalFolder(path), index)
    for is_files, read_files in _READERS:
        if is_files(path):
            return read_files(path, index)
    if is_image_folder(path, every_format):
        return read_image_folder(path, index, every_format)
    raise UserError(f"{path} is no data set known here: {_UNDERSTOOD}")


def _check_default(size: int) -> None:
    if size != SMALL_SIZE:
        raise UserError(
            f"must be given: without it there is CIFAR-10 alone, of {SMALL_SIZE}x{SMALL_SIZE} pixels, and the recipe"
            f" wants {size}x{size}; {_UNDERSTOOD}"
        )


def _check_size(what: str, size: int) -> None:
    if size != SMALL_SIZE:
        raise UserError(
            f"{what} has images of {SMALL_SIZE}x{SMALL_SIZE} pixels and the recipe wants {size}x{size}: "
            f"use a recipe for {SMALL_SIZE}x{SMALL_SIZE}, or name a folder of JPEG or PNG files"
        )
