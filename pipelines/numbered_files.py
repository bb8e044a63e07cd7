"""Files that come as parts of a whole, ``train-00000-of-01024`` and so on: which are there, and is one missing?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from fastselfie.errors import UserError

TRAIN, TESTS = "train", ("validation", "val", "test")


def has_training_parts(folders: Iterable[Path], suffix: str) -> bool:
    """Whether one file or more of a training split is there; args as in `parts`."""
    return TRAIN in _found(folders, suffix)[0]


def parts(folders: Iterable[Path], suffix: str) -> dict[str, list[Path]]:
    """The files of each split, in their order; ``validation`` before ``test``, whose labels ImageNet keeps to itself.

    Args:
        suffix: a regular expression that follows ``train-00000-of-01024``; if not empty, also ``train`` of the whole.

    Returns:
        By "train" and "test". A split that is not there is left out.

    Raises:
        UserError: a part of a split is missing, or there twice, or no file. OSError: a folder cannot be read.
    """
    found, totals = _found(folders, suffix)
    for split, files in found.items():
        odd = next((path for path in files.values() if path.exists() and not path.is_file()), None)
        if odd is not None:  # opening a pipe, one would wait until somebody writes to it
            raise UserError(f"{odd}: is no regular file: take it away")
        missing = next((number for number in range(totals[split]) if number not in files), None)
        if missing is not None:
            folder = next(iter(files.values())).parent
            raise UserError(f"{folder}: {split}-{missing:05d}-of-{totals[split]:05d} is missing: put it there")
    chosen = {"train": TRAIN, "test": next((split for split in TESTS if split in found), "")}
    return {
        name: [path for _, path in sorted(found[split].items())] for name, split in chosen.items() if split in found
    }


def _found(folders: Iterable[Path], suffix: str) -> tuple[dict[str, dict[int, Path]], dict[str, int]]:
    """By split the files by number, and how many there should be."""
    whole = "?" if suffix else ""  # `train` alone may be anything
    pattern = re.compile(rf"({'|'.join((TRAIN, *TESTS))})(?:-(\d{{5}})-of-(\d{{5}})){whole}{suffix}")
    found: dict[str, dict[int, Path]] = {}
    totals: dict[str, int] = {}
    for folder in folders:
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if match := pattern.fullmatch(name):
                split, number, total = match[1], int(match[2] or 0), int(match[3] or 1)
                path, files = folder / name, found.setdefault(split, {})
                if number in files or totals.setdefault(split, total) != total:
                    other = files.get(number) or next(iter(files.values()))
                    raise UserError(f"{other} and {path.name} are of two sets of files: leave one of them there")
                files[number] = path
    return found, totals
