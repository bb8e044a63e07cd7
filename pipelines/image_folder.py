"""Photographs on disk: ``train/`` and ``val/`` or ``test/`` with a folder for each class, or a flat folder of images.

Classes are the folders' names in sorted order and files are sorted too, so the same tree gives the same indices.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from fastselfie.errors import UserError
from fastselfie.pipelines.source import Files, Source

SUFFIXES = (".jpg", ".jpeg", ".png")
_TRAIN, _TESTS = "train", ("val", "test")


def is_image_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with ``train/``, or with images in it or in folders directly below it."""
    if not path.is_dir():
        return False
    return (path / _TRAIN).is_dir() or bool(_images(path)) or any(_images(path / name) for name in _folders(path))


def read_image_folder(path: Path) -> Source:
    """List the files below ``path``. Nothing is decoded here.

    ``val/`` is taken where both ``val/`` and ``test/`` exist: ImageNet's ``test/`` has no labels. Where one of the two
    parts is flat, the whole has no labels: enough for pretraining.

    Raises:
        UserError: there is no ``train/``, no image, a class folder without images, an image beside class folders, or a
            class to test on that is not trained on. OSError: a folder cannot be read.
    """
    name = path.resolve().name
    if (path / _TRAIN).is_dir():
        train, classes = _read_split(path / _TRAIN)
        folder = next((path / name for name in _TESTS if (path / name).is_dir()), None)
        if folder is None:
            return Source(name=name, train=train, test=None, classes=classes)
        test, test_classes = _read_split(folder)
        if classes and test_classes:
            return Source(name=name, train=train, test=_relabelled(test, test_classes, classes), classes=classes)
        return Source(name=name, train=_unlabelled(train), test=_unlabelled(test), classes=())
    if _images(path):
        below = next((name for name in _folders(path) if _images(path / name)), None)
        if below is not None:
            raise UserError(f"{path / below} lies beside images: name a folder with train/, or one without folders")
        return Source(name=name, train=_flat(path), test=None, classes=())
    if path.resolve().name in (_TRAIN, *_TESTS):
        raise UserError(f"{path} is one part of a data set: name the folder that it lies in")
    raise UserError(
        f"{path} has folders of images but no {_TRAIN}/: put them into {_TRAIN}/ and {_TESTS[0]}/ below it,"
        " or name a flat folder of images to pretrain on"
    )


def _read_split(folder: Path) -> tuple[Files, tuple[str, ...]]:
    """The files of class folders, or of a flat folder."""
    classes = _folders(folder)
    if not classes:
        return _flat(folder), ()
    loose = _images(folder)
    if loose:
        raise UserError(f"{folder / loose[0]} lies beside class folders: move it into one of them")
    names, labels = [], []
    for label, name in enumerate(classes):
        found = _images_below(folder, name)
        if not found:
            raise UserError(f"{folder / name} holds no JPEG or PNG file: put images of that class there or remove it")
        names += found
        labels += [label] * len(found)
    return Files(root=folder, names=tuple(names), labels_S=np.array(labels, dtype=np.int64)), classes


def _flat(folder: Path) -> Files:
    """Unlabelled images that lie directly in ``folder``."""
    names = _images(folder)
    if not names:
        raise UserError(f"{folder} holds no JPEG or PNG file: put images or class folders of images there")
    return Files(root=folder, names=tuple(names), labels_S=np.zeros(len(names), dtype=np.int64))


def _relabelled(test: Files, own: tuple[str, ...], classes: tuple[str, ...]) -> Files:
    """``test`` with the labels that ``classes`` gives to the names of its ``own`` classes."""
    strange = sorted(set(own) - set(classes))
    if strange:
        raise UserError(f"{test.root / strange[0]} is a class that {_TRAIN}/ has not: add it there or remove it here")
    label_of = np.array([classes.index(name) for name in own], dtype=np.int64)
    return dataclasses.replace(test, labels_S=label_of[test.labels_S])


def _unlabelled(files: Files) -> Files:
    return dataclasses.replace(files, labels_S=np.zeros_like(files.labels_S))


def _images(folder: Path) -> list[str]:
    """Names of the images directly in ``folder``, sorted. Hidden files do not count."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name) and not entry.is_dir())


def _images_below(folder: Path, class_name: str) -> list[str]:
    """The images of a class, however deep, relative to ``folder`` and sorted."""
    found = []
    for place, folders, files in os.walk(folder / class_name, followlinks=True, onerror=_raise):
        folders[:] = (name for name in folders if not name.startswith("."))
        below = os.path.relpath(place, folder)
        found += [os.path.join(below, name) for name in files if _is_image(name)]
    return sorted(found)


def _folders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _raise(error: OSError) -> None:
    raise error
