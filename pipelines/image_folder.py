"""Photographs on disk: ``train/`` and ``val/`` or ``test/`` with a folder for each class, or a flat folder of images.

Classes are the folders' names in sorted order and files are sorted too, so the same tree gives the same indices.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from fastselfie.errors import UserError
from fastselfie.pipelines.folder_listing import FolderListing, is_folder
from fastselfie.pipelines.formats import is_image, passed_over
from fastselfie.pipelines.names import Names
from fastselfie.pipelines.source import Files, Source

_TRAIN, _TESTS = "train", ("val", "test")


def is_image_folder(path: Path, every: bool = False) -> bool:
    """Whether ``path`` is a folder with ``train/``, or with images in it or in folders directly below it.

    Args: every: see `read_image_folder`.
    """
    if not path.is_dir():
        return False
    if (path / _TRAIN).is_dir() or _has_image(path, every):
        return True
    with os.scandir(path) as entries:
        return any(
            _has_image(Path(entry), every) for entry in entries if not entry.name.startswith(".") and is_folder(entry)
        )


def read_image_folder(path: Path, index: Path | None = None, every: bool = False) -> Source:
    """List the files below ``path``. Nothing is decoded here.

    ``val/`` is taken where both ``val/`` and ``test/`` exist: ImageNet's ``test/`` has no labels. Where one of the two
    parts is flat, the whole has no labels: enough for pretraining.

    Args:
        index: the folder where the listing is kept for the next time; None to keep none.
        every: list images of the other formats too, that ``prepare`` reads.

    Raises:
        UserError: there is no ``train/``, no image, a class folder without images, an image beside class folders, or a
            class to test on that is not trained on. OSError: a folder cannot be read.
    """
    listing = FolderListing(path, index, every)
    train, test, classes = _parts(path, listing)
    listing.keep()
    remark = passed_over(listing.others())
    return Source(name=path.resolve().name, train=train, test=test, classes=classes, remark=remark)


def _parts(path: Path, listing: FolderListing) -> tuple[Files, Files | None, tuple[str, ...]]:
    """What to train on, to test on, and the classes."""
    if (path / _TRAIN).is_dir():
        train, classes = _read_split(path, _TRAIN, listing)
        folder = next((name for name in _TESTS if (path / name).is_dir()), None)
        if folder is None:
            return train, None, classes
        test, test_classes = _read_split(path, folder, listing)
        if classes and test_classes:
            return train, _relabelled(test, test_classes, classes), classes
        return _unlabelled(train), _unlabelled(test), ()
    contents = listing.contents("")
    if contents.count:
        below = next((name for name in contents.folders if listing.contents(name).count), None)
        if below is not None:
            raise UserError(f"{path / below} lies beside images: name a folder with train/, or one without folders")
        return _flat(path, "", listing), None, ()
    if path.resolve().name in (_TRAIN, *_TESTS):
        raise UserError(f"{path} is one part of a data set: name the folder that it lies in")
    raise UserError(
        f"{path} has folders of images but no {_TRAIN}/: put them into {_TRAIN}/ and {_TESTS[0]}/ below it,"
        " or name a flat folder of images to pretrain on"
    )


def _read_split(path: Path, part: str, listing: FolderListing) -> tuple[Files, tuple[str, ...]]:
    """The files of class folders, or of a flat folder."""
    folder, contents = path / part, listing.contents(part)
    classes = contents.folders
    if not classes:
        return _flat(path, part, listing), ()
    if contents.count:
        raise UserError(f"{folder / contents.first()} lies beside class folders: move it into one of them")
    joined, counts = [], []
    for name in classes:
        found, count = _below(part, name, listing)
        if not count:
            raise UserError(f"{folder / name} holds no JPEG or PNG file: put images of that class there or remove it")
        joined.append(found)
        counts.append(count)
    names = Names.split(b"\0".join(joined), sum(counts))
    return Files(root=folder, names=names, labels_S=np.repeat(np.arange(len(classes)), counts)), classes


def _below(part: str, folder: str, listing: FolderListing) -> tuple[bytes, int]:
    """The images of a class, however deep, sorted, as `Names.joined` relative to ``part``; and how many there are."""
    pending, joined, count, deep = [folder], [], 0, False
    while pending:
        below = pending.pop()
        contents = listing.contents(os.path.join(part, below))
        pending += [os.path.join(below, name) for name in contents.folders]
        if contents.count:
            start = os.fsencode(below) + b"/"
            joined.append(start + contents.images.replace(b"\0", b"\0" + start))
            count += contents.count
        deep = deep or below != folder
    found = b"\0".join(joined)
    if deep:  # sorted as paths, not folder by folder
        found = b"\0".join(map(os.fsencode, sorted(map(os.fsdecode, found.split(b"\0")))))
    return found, count


def _flat(path: Path, part: str, listing: FolderListing) -> Files:
    """Unlabelled images that lie directly in a folder."""
    folder, contents = path / part, listing.contents(part)
    if not contents.count:
        raise UserError(f"{folder} holds no JPEG or PNG file: put images or class folders of images there")
    names = Names.split(contents.images, contents.count)
    return Files(root=folder, names=names, labels_S=np.zeros(len(names), dtype=np.int64))


def _relabelled(test: Files, own: tuple[str, ...], classes: tuple[str, ...]) -> Files:
    """``test`` with the labels that ``classes`` gives to the names of its ``own`` classes."""
    strange = sorted(set(own) - set(classes))
    if strange:
        raise UserError(f"{test.root / strange[0]} is a class that {_TRAIN}/ has not: add it there or remove it here")
    label_of = np.array([classes.index(name) for name in own], dtype=np.int64)
    return dataclasses.replace(test, labels_S=label_of[test.labels_S])


def _unlabelled(files: Files) -> Files:
    return dataclasses.replace(files, labels_S=np.zeros_like(files.labels_S))


def _has_image(folder: Path, every: bool) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name, every) and not is_folder(entry) for entry in entries)
