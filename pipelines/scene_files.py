"""The rendered scenes of `fastselfie.pipelines.synthetic` as real JPEG files, in the layout that photographs have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fastselfie.errors import UserError
from fastselfie.pipelines.synthetic import CLASSES, FIRST_TEST, render_scenes

_CHUNK = 256
_QUALITY = 92  # with Pillow's halved chroma: what cameras and ImageNet have


def write_scenes(folder: Path, *, size: int, train: int, test: int, seed: int, progress: Callable[[int], None]) -> None:
    """Write ``train`` and ``test`` scenes to ``folder/train/<class>/`` and ``folder/val/<class>/``.

    The folder appears when it is complete.

    Args:
        size: pixels a side. progress: told after every few files how many more there are.

    Raises:
        UserError: the folder exists and is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: is not an empty folder; choose another")
    whole = folder.resolve()  # of `.` too, which has no name
    partial = whole.with_name(f".{whole.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        for split, first, count in (("train", 0, train), ("val", FIRST_TEST, test)):
            for label in CLASSES:
                (partial / split / label).mkdir(parents=True)
            for start in range(0, count, _CHUNK):
                number = min(_CHUNK, count - start)
                images, labels = render_scenes(seed, first + start, number, size)
                for index, (pixels, label) in enumerate(zip(images, labels, strict=True), start):
                    file = partial / split / CLASSES[label] / f"{index:07d}.jpg"
                    Image.fromarray(pixels).save(file, quality=_QUALITY)
                progress(number)
        partial.replace(whole)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
