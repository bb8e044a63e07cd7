"""What ``--data`` may name, and which reader each goes to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fastselfie.errors import UserError
from fastselfie.pipelines.cifar import SIZE as BATCH_SIZE
from fastselfie.pipelines.cifar import is_cifar10, read_cifar10
from fastselfie.pipelines.download import cifar10_archive
from fastselfie.pipelines.downsampled_imagenet import is_imagenet32, read_imagenet32
from fastselfie.pipelines.image_folder import is_image_folder, read_image_folder
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.synthetic import CLASSES, synthetic_source

_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Source]], ...] = (
    (is_cifar10, read_cifar10),
    (is_imagenet32, read_imagenet32),
)
_UNDERSTOOD = (
    "give a folder of JPEG or PNG files (train/ and val/ with class folders, or flat), a cifar-10-batches-py folder or"
    " its tar.gz, a folder of downsampled-ImageNet 32x32 batches, or synthetic"
)
_MAX_SCENES = 1_000_000


def fetch(spec: str | None, size: int) -> None:
    """Download what ``--data`` names if that is needed, so that the processes of a machine need not all do so.

    Args and errors as in `open_source`.
    """
    if spec is None:
        try:
            _check_size("CIFAR-10, the default", size)
            cifar10_archive()
        except UserError as error:
            raise UserError(f"--data: {error}") from None


def open_source(spec: str | None, size: int) -> Source:
    """The data set that ``--data`` names: small images whole in memory, or a list of files.

    Args:
        spec: a path; "synthetic" or "synthetic:N" for N training scenes; None for CIFAR-10, downloaded once.
        size: the pixels a side that the recipe wants.

    Raises:
        UserError: one line that begins with ``--data``.
    """
    try:
        if spec is None:
            _check_size("CIFAR-10, the default", size)
            return read_cifar10(cifar10_archive())
        if spec == "synthetic" or spec.startswith("synthetic:"):
            return _open_synthetic(spec, size)
        return _open_path(spec, size)
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


def _open_path(spec: str, size: int) -> Source:
    try:
        path = Path(spec).expanduser()
    except RuntimeError:
        raise UserError(f"{spec}: there is no such user's home; give the whole path") from None
    if not spec or not path.exists():
        raise UserError(f"{spec!r} does not exist: {_UNDERSTOOD}")
    for is_kind, read in _READERS:
        if is_kind(path):
            _check_size(str(path), size)  # before minutes are spent on reading
            return read(path)
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(f"{path} is an empty folder: {_UNDERSTOOD}")
    if is_image_folder(path):
        return read_image_folder(path)
    raise UserError(f"{path} is no data set known here: {_UNDERSTOOD}")


def _check_size(what: str, size: int) -> None:
    if size != BATCH_SIZE:
        raise UserError(
            f"{what} has images of {BATCH_SIZE}x{BATCH_SIZE} pixels and the recipe wants {size}x{size}: "
            f"use a recipe for {BATCH_SIZE}x{BATCH_SIZE}, or name a folder of JPEG or PNG files"
        )
