"""The views of photographs in plain Pillow and NumPy, one image at a time: the truth that the DALI graph is held to.

Nothing here is shared with `fastselfie.pipelines`. Shapes: B images a batch, H pixels a side of a view.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 2
"""Numbers on [0, 1) a random window takes: ten areas, ten aspect ratios, its row, its column."""

Window = tuple[int, int, int, int]
"""First row, first column, height, width."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """The image of a JPEG or PNG file as a viewer shows it: uint8 (rows, columns, 3).

    EXIF's orientation is applied, transparency dropped, grey becomes three equal channels; 16 bits become 8.
    """
    with Image.open(io.BytesIO(data)) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # grey of 16 bits: Pillow's own conversion cuts off at 255
            image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
        return np.asarray(image.convert("RGB"))


def random_window(rows: int, columns: int, draws: Sequence[float], min_area: float) -> Window:
    """The window of a random resized crop.

    Args:
        draws: `DRAWS` numbers on [0, 1). min_area: smallest share of the area.
    """
    for attempt in range(ATTEMPTS):
        area = rows * columns * (min_area + draws[attempt] * (1 - min_area))
        narrowest, widest = math.log(3 / 4), math.log(4 / 3)
        aspect = math.exp(narrowest + draws[ATTEMPTS + attempt] * (widest - narrowest))
        width = math.floor(math.sqrt(area * aspect) + 0.5)
        height = math.floor(math.sqrt(area / aspect) + 0.5)
        if 0 < width <= columns and 0 < height <= rows:
            row = math.floor(draws[2 * ATTEMPTS] * (rows - height + 1))
            column = math.floor(draws[2 * ATTEMPTS + 1] * (columns - width + 1))
            return row, column, height, width
    return central_window(rows, columns)


def central_window(rows: int, columns: int) -> Window:
    """The largest central window whose aspect ratio is in [3/4, 4/3]."""
    height = min(rows, math.floor(columns * 4 / 3 + 0.5))
    width = min(columns, math.floor(rows * 4 / 3 + 0.5))
    return (rows - height) // 2, (columns - width) // 2, height, width


def training_view(
    data: bytes, size: int, draws: Sequence[float], min_area: float, flip: bool = False
) -> NDArray[np.uint8]:
    """A random resized crop, mirrored where ``flip`` says so: uint8 (H, H, 3)."""
    image = decode(data)
    row, column, height, width = random_window(image.shape[0], image.shape[1], draws, min_area)
    view = resize(image[row : row + height, column : column + width], size, size)
    return view[:, ::-1] if flip else view


def plain_view(data: bytes, size: int) -> NDArray[np.uint8]:
    """The centre of the image whose shorter side was resized to 256/224 of ``size``: uint8 (H, H, 3)."""
    image = decode(data)
    rows, columns = image.shape[:2]
    shorter = math.floor(size * 256 / 224 + 0.5)
    scale = shorter / min(rows, columns)
    height = shorter if rows <= columns else math.floor(rows * scale + 0.5)
    width = shorter if columns <= rows else math.floor(columns * scale + 0.5)
    row, column = (height - size) // 2, (width - size) // 2
    return resize(image, height, width)[row : row + size, column : column + size]


def resize(image: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Bilinear, with a triangle as wide as an output pixel where the image shrinks (antialiasing)."""
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))


def plain_batches(
    paths: Sequence[Path], batch: int, size: int, min_area: float, seed: int
) -> Iterator[NDArray[np.uint8]]:
    """Training views of files in random order, without end, one after another: uint8 (B, H, H, 3) each.

    What a loader without any parallelism does, for benches. A batch may span epochs; draws are NumPy's.
    """
    generator = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch:
            waiting.extend(generator.permutation(len(paths)).tolist())
        taken, waiting = waiting[:batch], waiting[batch:]
        draws, flips = generator.random((batch, DRAWS)).tolist(), generator.random(batch) < 0.5
        yield np.stack(
            [
                training_view(paths[index].read_bytes(), size, draw, min_area, bool(flip))
                for index, draw, flip in zip(taken, draws, flips, strict=True)
            ]
        )
