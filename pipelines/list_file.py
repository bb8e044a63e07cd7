"""A list of files: ``list.txt``, or a folder with ``train.txt`` and perhaps ``val.txt`` or ``test.txt``.

A line is a path, absolute or relative to the list's folder, and perhaps a tab and a class: all lines name one or none
does. Empty lines, and lines that begin with #, are passed over. A path may be there more than once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastselfie.errors import UserError
from fastselfie.pipelines.names import Names
from fastselfie.pipelines.source import Files, Source

_SUFFIX = ".txt"
_TRAIN, _TESTS = "train.txt", ("val.txt", "test.txt")
_SHOWN = 200  # characters of a path in a message
_TRIED = 16  # files: where none of them exists, the list is of another folder


def is_list(path: Path) -> bool:
    """Whether ``path`` is a text file, or a folder with ``train.txt`` and no folder ``train``."""
    if path.is_dir():
        return (path / _TRAIN).is_file() and not (path / "train").is_dir()
    return path.suffix == _SUFFIX and path.is_file()


def read_list(path: Path) -> Source:
    """Read the list or lists. ``val.txt`` is taken where there is ``test.txt`` too.

    Where one of two lists has no classes, the whole has no labels.

    Raises:
        UserError: a line is none of a list, there is no line, the files do not exist, or there is a class to test on
            that is not trained on. OSError: a list cannot be read.
    """
    lists = [path]
    if path.is_dir():
        lists = [path / _TRAIN, *[path / name for name in _TESTS if (path / name).is_file()][:1]]
    parts = [_parsed(one) for one in lists]
    labelled = all(part.classes for part in parts)
    classes = _classes(parts[0].classes) if labelled else ()
    files = [_files(part, classes) for part in parts]
    name = path.resolve().name
    return Source(name=name, train=files[0], test=files[1] if len(files) > 1 else None, classes=classes)


@dataclass(frozen=True, kw_only=True)
class _List:
    """The lines of a list: paths, and the class of each, or no classes."""

    path: Path
    names: list[str]
    classes: list[str]


def _parsed(path: Path) -> _List:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with a byte order mark or without one
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text: save it as such") from None
    names: list[str] = []
    classes: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, tab, label = line.partition("\t")
        label = label.strip()
        if not name or "\0" in name or (tab and not label) or "\t" in label:
            raise UserError(f"{path}: line {number} is not understood: write a path, or a path, a tab and a class")
        if bool(tab) != bool(classes) and names:
            has = "a class, and those before have none" if tab else "no class, and those before have one"
            raise UserError(f"{path}: line {number} has {has}: give all lines one or none")
        names.append(name)
        if tab:
            classes.append(label)
    if not names:
        raise UserError(f"{path} names no file: write one path a line")
    tried = names[:_TRIED]
    if not any(os.path.exists(path.parent / name) for name in tried):
        raise UserError(
            f"{path}: {tried[0][:_SHOWN]!r} does not exist: paths are relative to {path.parent}, and"
            " a tab comes before a class"
        )
    return _List(path=path, names=names, classes=classes)


def _classes(found: list[str]) -> tuple[str, ...]:
    """In order: of the numbers if all are numbers, else of the text."""
    unique = sorted(set(found))
    if all(re.fullmatch(r"-?[0-9]{1,1000}", name) for name in unique):
        unique.sort(key=int)
    return tuple(unique)


def _files(part: _List, classes: tuple[str, ...]) -> Files:
    labels_S = np.zeros(len(part.names), dtype=np.int64)
    if classes:
        numbers = {name: number for number, name in enumerate(classes)}
        strange = next((name for name in part.classes if name not in numbers), None)
        if strange is not None:
            raise UserError(f"{part.path}: {strange} is a class that {_TRAIN} has not: add it there or remove it here")
        labels_S[:] = [numbers[name] for name in part.classes]
    return Files(root=part.path.parent, names=Names.of(part.names), labels_S=labels_S)
