"""From one encoded image to the pixels that a viewer shows: JPEG by libjpeg-turbo, PNG and the rest by Pillow."""

from __future__ import annotations

import importlib.util
import io
import re
import threading
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastselfie.errors import UserError
from fastselfie.pipelines.image_bytes import MOST_PIXELS, BadImage
from fastselfie.pipelines.jpeg_header import JpegHeader, jpeg_header
from fastselfie.pipelines.jpeg_window import cut

_KEPT_BYTES = 48 << 20  # a thread keeps memory for images of 16 million pixels; larger ones get their own each time
_BEYOND = 8  # rows below the last one asked for that it depends on, through the interpolation of colour
_JPEG_END = b"\xff\xd9"
_ORIENTATION, _UPRIGHT = 0x0112, 1  # EXIF's tag and value
Colors: TypeAlias = Literal["RGB", "BGR"]
_Pixels: TypeAlias = NDArray[np.uint8]


def require_turbo() -> None:
    """Raises `UserError` where simplejpeg is not installed."""
    if importlib.util.find_spec("simplejpeg") is None:
        raise UserError("decoding with libjpeg-turbo needs simplejpeg: pip install 'fastselfie[turbo]'")


class ThreadMemory(threading.local):
    """What a thread keeps from image to image, so that the system need not give it fresh pages each time."""

    def __init__(self) -> None:
        self._image, self._part = np.empty(0, np.uint8), np.empty(0, np.uint8)
        self._view = np.empty((0, 0, 3), np.uint8)

    def image(self, size: int) -> _Pixels:
        """At least ``size`` bytes for a decoded image; the next call's may be the same."""
        if size > _KEPT_BYTES:
            return np.empty(size, np.uint8)
        if size > self._image.size:
            self._image = np.empty(size, np.uint8)
        return self._image

    def view(self, size: int) -> _Pixels:
        """For a view of ``size`` pixels a side: (size, size, 3). The next call's is the same."""
        if len(self._view) != size:
            self._view = np.empty((size, size, 3), np.uint8)
        return self._view

    def contiguous(self, image: _Pixels) -> _Pixels:
        """A copy of ``image``; the next call's may be in the same memory."""
        if image.size > _KEPT_BYTES:
            return np.ascontiguousarray(image)
        if image.size > self._part.size:
            self._part = np.empty(image.size, np.uint8)
        copy = self._part[: image.size].reshape(image.shape)
        np.copyto(copy, image)
        return copy


def usual_header(data: _Pixels) -> JpegHeader | None:
    """The header of a JPEG file of the usual kinds, which libjpeg-turbo decodes here; None of anything else."""
    header = jpeg_header(data.data)
    return header if header and header.usual else None


def decode_image(
    data: _Pixels, header: JpegHeader | None, memory: ThreadMemory, rows: int = MOST_PIXELS, colors: Colors = "RGB"
) -> _Pixels:
    """The image as a viewer shows it: uint8 (rows, columns, 3), its first ``rows`` at least. Valid until this thread's
    next.

    Args:
        data: the file, uint8 (size,). header: see `usual_header`. colors: the order of channels.

    Raises:
        BadImage: it cannot be decoded. MemoryError.
    """
    if header is None:
        image = decode_by_pillow(data)
        return image if colors == "RGB" else image[:, :, ::-1]
    if bytes(data[-2:]) != _JPEG_END and data[header.rows_at :].tobytes().rfind(_JPEG_END) < 0:
        raise BadImage("is cut off")  # and filled up with grey, if libjpeg-turbo had its way
    stop = min(header.rows, rows + _BEYOND)
    if stop < header.rows and header.orientation == 1 and not header.progressive:
        # The library has no way to stop early, but it stops at the last row that the header speaks of.
        data = data.copy()
        data[header.rows_at : header.rows_at + 2] = divmod(stop, 256)
    else:
        stop = header.rows
    return turned(_decode_jpeg(data, (stop, header.columns), memory, colors), header.orientation)


def decode_window(
    data: _Pixels, header: JpegHeader, window: tuple[int, int, int, int], memory: ThreadMemory, colors: Colors = "RGB"
) -> _Pixels:
    """The window of the image that `decode_image` makes: uint8 (height, width, 3). Valid until this thread's next.

    Of a file with restart markers at the right places little more than the window is decoded.

    Args:
        window: first row and column, height and width. colors: the order of channels.

    Raises:
        BadImage: it cannot be decoded. MemoryError.
    """
    row, column, height, width = window
    part = cut(data, header, window) if header.orientation == 1 else None
    if part is None:
        image = decode_image(data, header, memory, rows=row + height, colors=colors)
    else:
        row, column = part.row, part.column
        image = _decode_jpeg(part.data, (part.rows, part.columns), memory, colors)
    return image[row : row + height, column : column + width]


def _decode_jpeg(data: _Pixels, shape: tuple[int, int], memory: ThreadMemory, colors: Colors) -> _Pixels:
    """What libjpeg-turbo makes of it. It goes on after damage to the pixels, as Pillow and DALI do."""
    import simplejpeg  # an extra: only here

    try:
        image = simplejpeg.decode_jpeg(data, colors, buffer=memory.image(shape[0] * shape[1] * 3), strict=False)
    except ValueError as error:
        if re.search("memory", str(error), re.IGNORECASE):
            raise MemoryError from None
        if not re.search("unknown", str(error), re.IGNORECASE):
            raise BadImage("is damaged") from None
        # A version of JFIF or a number of Adobe's that it does not know, which no other reader minds.
        image = _by_pillow(data)[0][:, :, :: 1 if colors == "RGB" else -1]
    if image.shape[:2] != shape:  # it has a second header
        raise BadImage("is damaged")
    return image


def decode_by_pillow(data: _Pixels) -> _Pixels:
    """Any JPEG or PNG image as a viewer shows it: uint8 (rows, columns, 3), transparency dropped.

    Raises:
        BadImage: it cannot be decoded.
    """
    return turned(*_by_pillow(data))


def _by_pillow(data: _Pixels) -> tuple[_Pixels, int]:
    """The image as it is stored, and its orientation; see `decode_by_pillow`."""
    try:
        with Image.open(io.BytesIO(data.data), formats=("JPEG", "PNG")) as file:
            file.load()
            orientation = exif_orientation(file)
            image: Image.Image = file
            if image.mode.startswith("I"):  # grey of 16 bits, which Pillow's own conversion cuts off at 255
                image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
            return np.array(image.convert("RGB")), orientation
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of a dozen kinds for damaged files
        raise BadImage("is damaged") from None


def exif_orientation(image: Image.Image) -> int:
    """What EXIF says of a loaded image: 1 to 8, 1 also where it says nothing; 0 where it is damaged.

    XMP's word, which Pillow would take where EXIF has none, counts for no other decoder and no browser.
    """
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    try:
        value = image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # damaged EXIF makes Pillow raise nearly anything
        return 0
    return int(value) if value in range(1, 9) else 0


def turned(image: _Pixels, orientation: int) -> _Pixels:
    """A view of (rows, columns, ...) as EXIF's orientation says that it is to be seen; 0 and 1: as it is."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
