"""Downsampled ImageNet at 32x32 pixels (Chrabaszcz, Loshchilov, Hutter 2017), as published.

A folder with ``train_data_batch_1`` to ``train_data_batch_10`` (1,281,167 images) and ``val_data`` (50,000), each a
pickled dictionary of CIFAR-10's layout with labels from 1 to 1000. The files hold no names of the classes.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastselfie.errors import UserError
from fastselfie.pipelines.cifar import PickledBatch, read_batch, to_split
from fastselfie.pipelines.source import ResidentSource

_CLASSES = 1000
_TRAIN = re.compile(r"train_data_batch_([1-9][0-9]*)")
_TEST = "val_data"


def is_imagenet32(path: Path) -> bool:
    """Whether `read_imagenet32` is the reader for ``path``; the files may still be damaged or missing."""
    return path.is_dir() and ((path / _TEST).exists() or bool(_numbers(path)))


def read_imagenet32(path: Path) -> ResidentSource:
    """Downsampled ImageNet, whole in memory (3.9 GB). The first few training batches alone will do.

    Args:
        path: the folder with the batches.

    Returns:
        Labels from 0; the validation images are the test split; classes are called "0" to "999".

    Raises:
        UserError: a batch is missing, damaged or of another size; the message names it.
    """
    numbers = _numbers(path)
    for expected in range(1, max(numbers, default=1) + 1):
        if expected not in numbers:
            raise UserError(f"{path} has no train_data_batch_{expected}: add it, or keep batches numbered from 1 only")
    if not (path / _TEST).exists():
        raise UserError(f"{path} has no {_TEST}: add it, results are measured on it")
    test = to_split([_read(path / _TEST)])
    train = to_split([_read(path / f"train_data_batch_{number}") for number in numbers])
    return ResidentSource(
        name="imagenet32", train=train, test=test, classes=tuple(str(label) for label in range(_CLASSES))
    )


def _numbers(path: Path) -> list[int]:
    matches = (_TRAIN.fullmatch(entry.name) for entry in path.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def _read(path: Path) -> PickledBatch:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): check its permissions") from None
    with file:
        return read_batch(file, str(path), _CLASSES, first_label=1)
