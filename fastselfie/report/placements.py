"""What a pretraining run keeps for the paper's figure 2: pictures, their masked places, and what was put there."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastselfie.config import PretrainConfig
from fastselfie.errors import UserError
from fastselfie.report.runs import read_lines
from fastselfie.training.placements import FOLDER, MOMENTS

_REMEDY = "restore the file, or remove the folder to report without it"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where the model puts the masked patches after ``step`` steps.

    Attributes:
        places: for each picture its masked places, row by row in the grid. chosen: for each of those the place that
        the patch comes from which the model puts there; it is right where both agree.
    """

    step: int
    places: tuple[tuple[int, ...], ...]
    chosen: tuple[tuple[int, ...], ...]

    def right(self, picture: int) -> int:
        """How many masked places of a picture got their own patch."""
        pairs = zip(self.places[picture], self.chosen[picture], strict=True)
        return sum(place == chosen for place, chosen in pairs)


@dataclass(frozen=True, kw_only=True)
class Placements:
    """The same pictures with the same masks at several moments of a run.

    Attributes:
        grid: patches a side, G. pictures: uint8 (H, H, 3) each, as the network saw them. moments: in order of steps.
    """

    grid: int
    pictures: tuple[NDArray[np.uint8], ...]
    moments: tuple[Moment, ...]


def read_placements(run: Path, config: PretrainConfig) -> Placements | None:
    """The placements of the run in the folder ``run``; None where it has none, or no moment yet.

    Raises:
        UserError: a file is missing or damaged, or does not fit the run's settings.
    """
    folder = run / FOLDER
    lines = read_lines(folder / MOMENTS)
    if not lines:
        return None
    count = len(list(folder.glob("picture-*.png")))
    if not count:
        raise UserError(f"{folder}: has {MOMENTS} but no picture-0.png; {_REMEDY}")
    pictures = tuple(_picture(folder / f"picture-{index}.png", config.image_size) for index in range(count))
    file = folder / MOMENTS
    moments = tuple(_moment(f"{file}: line {n}", line, count, config.patches) for n, line in enumerate(lines, 1))
    return Placements(grid=config.grid, pictures=pictures, moments=moments)


def _picture(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            if image.size != (size, size):  # before any pixel is decoded
                width, height = image.size
                raise ValueError(f"{width}x{height} pixels, not the run's {size}x{size}")
            return np.asarray(image.convert("RGB"))
    # What Pillow raises for damage; a broken chunk is a SyntaxError.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(f"{file}: cannot be read ({error}); {_REMEDY}") from None


def _moment(where: str, line: dict[str, Any], pictures: int, patches: int) -> Moment:
    places, chosen = (_indices(where, name, line.get(name), pictures, patches) for name in ("places", "chosen"))
    for index, (there, put) in enumerate(zip(places, chosen, strict=True)):
        if len(set(there)) != len(there) or len(put) != len(there) or not set(put) <= set(there):
            what = f"of picture {index} are not a masked patch for every masked place"
            raise UserError(f"{where}: `chosen` {what}; {_REMEDY}")
    return Moment(step=line["step"], places=places, chosen=chosen)


def _indices(where: str, name: str, value: Any, pictures: int, patches: int) -> tuple[tuple[int, ...], ...]:
    """``value`` as a tuple of places for each picture."""
    if not isinstance(value, list) or len(value) != pictures:
        raise UserError(f"{where}: `{name}` must have a list for each of the {pictures} pictures; {_REMEDY}")
    if not all(isinstance(row, list) and row and _are_places(row, patches) for row in value):
        raise UserError(f"{where}: `{name}` must hold places from 0 to {patches - 1}; {_REMEDY}")
    return tuple(map(tuple, value))


def _are_places(row: Sequence[Any], patches: int) -> bool:
    return all(type(place) is int and 0 <= place < patches for place in row)
