"""The paper's figure 2: masked patches where the model thinks they belong, framed white where right, red where wrong.

Shapes: G patches a side of the grid; H pixels a side of a picture, S of the picture as it is shown.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastselfie.report.palette import LIGHT
from fastselfie.report.placements import Moment, Placements

RIGHT, WRONG = (255, 255, 255), (230, 25, 35)
_SMALL = 128  # pixels a side: smaller pictures are enlarged, to at least
_LEAST = 256
_GAP, _HEADING = 10, 34  # pixels between pictures on disk, and above them


def enlargement(size: int) -> int:
    """By which whole factor a picture of ``size`` pixels a side is shown, so that its frames are fine lines."""
    return 1 if size >= _SMALL else -(-_LEAST // size)


def framed(placements: Placements, picture: int, moment: Moment) -> NDArray[np.uint8]:
    """A picture at a moment, uint8 (S, S, 3): its masked places filled with the chosen patches, and framed."""
    plain_HH3 = placements.pictures[picture]
    factor = enlargement(len(plain_HH3))
    large_SS3 = plain_HH3.repeat(factor, axis=0).repeat(factor, axis=1)
    shown_SS3 = large_SS3.copy()
    side = len(large_SS3) // placements.grid

    def patch(image: NDArray[np.uint8], place: int) -> NDArray[np.uint8]:
        row, column = divmod(place, placements.grid)
        return image[row * side : (row + 1) * side, column * side : (column + 1) * side]

    for place, chosen in zip(moment.places[picture], moment.chosen[picture], strict=True):
        filled = patch(shown_SS3, place)
        filled[:] = patch(large_SS3, chosen)
        _frame(filled, RIGHT if place == chosen else WRONG)
    return shown_SS3


def frame_width(side: int) -> int:
    """Pixels of the frame inside a patch of ``side`` pixels as shown."""
    return max(2, round(side / 14))


def _frame(patch: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    width = frame_width(len(patch))
    for edge in (patch[:width], patch[-width:], patch[:, :width], patch[:, -width:]):
        edge[:] = colour


def data_uri(image_SS3: NDArray[np.uint8], enlarged: bool) -> str:
    """An image for the page: enlarged pixels compress best as PNG, photographs as JPEG with full colour."""
    buffer = io.BytesIO()
    image = Image.fromarray(image_SS3)
    if enlarged:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=90, subsampling="4:4:4")
    kind = "png" if enlarged else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(placements: Placements) -> bytes:
    """A PNG file of all pictures, one a row, at all moments, one a column."""
    side = len(placements.pictures[0]) * enlargement(len(placements.pictures[0]))
    columns, rows = len(placements.moments), len(placements.pictures)
    size = (columns * (side + _GAP) + _GAP, rows * (side + _GAP) + _HEADING)
    image = Image.new("RGB", size, LIGHT["card"])
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(20)
    for column, moment in enumerate(placements.moments):
        left = _GAP + column * (side + _GAP)
        draw.text((left, 5), f"step {moment.step:,}", fill=LIGHT["ink"], font=font)
        for row in range(rows):
            image.paste(Image.fromarray(framed(placements, row, moment)), (left, _HEADING + row * (side + _GAP)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
