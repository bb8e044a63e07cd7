"""A folder's images in memory, shrunk first where asked: what every side of the loader's benches reads."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastselfie.pipelines.source import EncodedImages

SHRINKS = {0: "as they are", 500: "longer side at most 500, quality 90", 256: "shorter side at most 256, quality 95"}
"""What --shrink does, by its value. An image that is small enough keeps its bytes."""


@dataclass(frozen=True, kw_only=True)
class ImagesInMemory(EncodedImages):
    """S encoded images, their bytes in memory."""

    data: tuple[bytes, ...]
    labels_S: NDArray[np.int64]

    def name(self, index: int) -> str:
        """See `EncodedImages.name`."""
        return f"image {index}"

    def read(self, index: int) -> bytes:
        """See `EncodedImages.read`."""
        return self.data[index]

    def identity(self) -> Iterable[bytes]:
        """All bytes."""
        yield from self.data

    @property
    def mean_kilobytes(self) -> float:
        """Of an image."""
        return sum(map(len, self.data)) / len(self.data) / 1e3


def read_into_memory(images: EncodedImages, shrink: int = 0) -> ImagesInMemory:
    """All ``images``, shrunk as `SHRINKS` says."""
    data = tuple(shrunk(images.read(index), shrink) for index in range(len(images)))
    return ImagesInMemory(data=data, labels_S=np.asarray(images.labels_S))


def shrunk(data: bytes, shrink: int) -> bytes:
    """A JPEG copy of an image's bytes, or these bytes where it is small enough."""
    if shrink == 0:
        return data
    with Image.open(io.BytesIO(data)) as image:
        side, quality = (max(image.size), 90) if shrink == 500 else (min(image.size), 95)
        if side <= shrink:
            return data
        columns, rows = (max(1, round(length * shrink / side)) for length in image.size)
        file = io.BytesIO()
        image.convert("RGB").resize((columns, rows), Image.Resampling.LANCZOS).save(file, "JPEG", quality=quality)
    return file.getvalue()
