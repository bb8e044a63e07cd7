"""Files to views on the CPU by libjpeg-turbo, Pillow and PyTorch: the DALI decoder's work in less time.

The usual JPEG file is decoded by simplejpeg into memory that its thread keeps; PNG and the rest by Pillow. Windows are
exactly those of the DALI graph; `fastselfie.pipelines.resampling` says how far pixels are from its own. A file is
decoded whole, so unlike DALI's region decoder this one finds damage wherever in the image it is.

Shapes: B images a batch, G patches a side, P pixels a side of a patch, H = G * P.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fastselfie.errors import UserError
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_bytes import MOST_PIXELS, BadImage
from fastselfie.pipelines.jpeg_header import JpegHeader, jpeg_header
from fastselfie.pipelines.resampling import resize_centre, resize_window
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import View
from fastselfie.pipelines.window_numpy import random_windows

_CHUNK = 16  # images a task at most: what NumPy and the pool cost a call is shared by so many
_KEPT_BYTES = 48 << 20  # a thread keeps memory for images of 16 million pixels; larger ones get their own each time
_BEYOND = 8  # rows below a window that its last row depends on, through the interpolation of colour
_JPEG_END = b"\xff\xd9"
_Pixels: TypeAlias = NDArray[np.uint8]


def require_turbo() -> None:
    """Raises `UserError` where simplejpeg is not installed."""
    if importlib.util.find_spec("simplejpeg") is None:
        raise UserError("decoding with libjpeg-turbo needs simplejpeg: pip install 'fastselfie[turbo]'")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A batch on its way.

    Attributes:
        headers: None where an image is no JPEG file with a header. pixels_B3HH: channels last in memory.
        windows_B4: int32, the first row, the first column, height, width; None for a plain view.
        chunks: what is wrong, by the image's position, as soon as they are decoded.
    """

    encoded: Encoded
    headers: Sequence[JpegHeader | None]
    pixels_B3HH: Tensor
    windows_B4: NDArray[np.int32] | None
    chunks: list[Future[dict[int, str]]] = field(default_factory=list)

    def bad(self) -> dict[int, str]:
        """Waits until it is decoded."""
        found: dict[int, str] = {}
        for chunk in self.chunks:
            found.update(chunk.result())
        return found


class TurboDecoder:
    """Decodes files to a view in the memory of the CPU; `fastselfie.pipelines.decoder.Decoder` is its twin.

    After a failure it starts anew: what is scheduled next is decoded, what was under way is forgotten.
    """

    def __init__(self, view: View, *, batch: int, threads: int, device: torch.device, depth: int = 1) -> None:
        """Args: batch: images of a run at most. depth: runs under way at most."""
        require_turbo()
        assert device.type == "cpu", "the views are in the CPU's memory"
        self._view, self._batch, self._threads, self._depth = view, batch, threads, depth
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._memory = _Memory()
        self._under_way: deque[_Run] = deque()

    def schedule(self, encoded: Encoded) -> None:
        """Start decoding. What is wrong with a file shows in `take`."""
        count, size = len(encoded.data), self._view.size
        assert count <= self._batch
        assert len(self._under_way) < self._depth
        headers = [jpeg_header(data.data) for data in encoded.data]
        windows_B4 = None
        if encoded.draws is not None:
            shape_B2 = np.array([header.turned_shape if header else (1, 1) for header in headers])
            windows_B4 = random_windows(shape_B2, encoded.draws, self._view.min_area)
        pixels_B3HH = torch.empty(count, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        run = _Run(encoded=encoded, headers=headers, pixels_B3HH=pixels_B3HH, windows_B4=windows_B4)
        step = min(_CHUNK, math.ceil(count / self._threads))
        for first in range(0, count, step):
            run.chunks.append(self._pool.submit(self._decode, run, range(first, min(first + step, count))))
        self._under_way.append(run)

    def take(self) -> tuple[Tensor, Tensor | None]:
        """The oldest run's result.

        Returns:
            pixels, uint8 (B, G, P, G, P, 3), and of a random resized crop the windows, int32 (B, 4): start and shape.

        Raises:
            Undecodable: images cannot be decoded, of this run or of those after it.
        """
        run = self._under_way[0]
        try:
            if run.bad():
                runs = enumerate(self._under_way)
                raise Undecodable({(number, at): why for number, run in runs for at, why in run.bad().items()})
        except BaseException:
            self.drop()
            raise
        self._under_way.popleft()
        grid, patch = self._view.grid, self._view.size // self._view.grid
        pixels = run.pixels_B3HH.permute(0, 2, 3, 1).view(-1, grid, patch, grid, patch, 3)
        return pixels, None if run.windows_B4 is None else torch.from_numpy(run.windows_B4)

    def drop(self) -> None:
        """Let go of every run under way, good or bad."""
        for run in self._under_way:
            for chunk in run.chunks:
                chunk.cancel()
        self._under_way.clear()

    def _decode(self, run: _Run, positions: range) -> dict[int, str]:
        """A task: the images at ``positions``, written to their places in the output. What is wrong, by position."""
        bad = {}
        for position in positions:
            try:
                self._decode_one(run, position)
            except BadImage as error:
                bad[position] = str(error)
            except MemoryError:
                bad[position] = "needs more memory to be decoded than there is"
        return bad

    def _decode_one(self, run: _Run, position: int) -> None:
        encoded, header, out = run.encoded, run.headers[position], run.pixels_B3HH[position : position + 1]
        data = encoded.data[position]
        if run.windows_B4 is None or encoded.draws is None or encoded.flip is None:
            resize_centre(self._image(data, header), out, shorter_side=self._view.shorter_side)
            return
        window = run.windows_B4[position]
        image = self._image(data, header, rows=int(window[0] + window[2]))
        if header is None:  # its shape was not known before
            draws = encoded.draws[position : position + 1]
            window[:] = random_windows(np.array([image.shape[:2]]), draws, self._view.min_area)[0]
        row, column, height, width = window.tolist()
        part = self._memory.contiguous(image[row : row + height, column : column + width])
        resize_window(part, out, flip=bool(encoded.flip[position]))

    def _image(self, data: _Pixels, header: JpegHeader | None, rows: int = MOST_PIXELS) -> _Pixels:
        """The image as a viewer shows it, uint8 (rows, columns, 3), its first ``rows`` at least: until this thread's
        next."""
        if header is None or not header.usual:
            return decode_by_pillow(data)
        if bytes(data[-2:]) != _JPEG_END and data[header.rows_at :].tobytes().rfind(_JPEG_END) < 0:
            raise BadImage("is cut off")  # and filled up with grey, if libjpeg-turbo had its way
        stop = min(header.rows, rows + _BEYOND)
        if stop < header.rows and header.orientation == 1 and not header.progressive:
            # The library has no way to stop early, but it stops at the last row that the header speaks of.
            data = data.copy()
            data[header.rows_at : header.rows_at + 2] = divmod(stop, 256)
        else:
            stop = header.rows
        stored = self._decode_jpeg(data, stop * header.columns * 3)
        if stored.shape[:2] != (stop, header.columns):  # it has a second header
            raise BadImage("is damaged")
        return turned(stored, header.orientation)

    def _decode_jpeg(self, data: _Pixels, size: int) -> _Pixels:
        """What libjpeg-turbo makes of it. It goes on after damage to the pixels, as Pillow and DALI do."""
        import simplejpeg  # an extra: only here

        try:
            return simplejpeg.decode_jpeg(data, "RGB", buffer=self._memory.image(size), strict=False)
        except ValueError as error:
            if re.search("memory", str(error), re.IGNORECASE):
                raise MemoryError from None
            if "subsampling" in str(error):  # one of those that its interface has no name for
                return decode_by_pillow(data)
            raise BadImage("is damaged") from None


class _Memory(threading.local):
    """What a thread keeps from image to image, so that the system need not give it fresh pages each time."""

    def __init__(self) -> None:
        self._image, self._part = np.empty(0, np.uint8), np.empty(0, np.uint8)

    def image(self, size: int) -> _Pixels:
        """At least ``size`` bytes for a decoded image; the next call's may be the same."""
        if size > _KEPT_BYTES:
            return np.empty(size, np.uint8)
        if size > self._image.size:
            self._image = np.empty(size, np.uint8)
        return self._image

    def contiguous(self, image: _Pixels) -> _Pixels:
        """A copy of ``image``; the next call's may be in the same memory."""
        if image.size > _KEPT_BYTES:
            return np.ascontiguousarray(image)
        if image.size > self._part.size:
            self._part = np.empty(image.size, np.uint8)
        copy = self._part[: image.size].reshape(image.shape)
        np.copyto(copy, image)
        return copy


def decode_by_pillow(data: _Pixels) -> _Pixels:
    """Any JPEG or PNG image as a viewer shows it: uint8 (rows, columns, 3), transparency dropped.

    Raises:
        BadImage: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data.data), formats=("JPEG", "PNG")) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # grey of 16 bits, which Pillow's own conversion cuts off at 255
                image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
            return np.array(image.convert("RGB"))  # a copy, as PyTorch wants memory that may be written to
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of a dozen kinds for damaged files
        raise BadImage("is damaged") from None


def turned(image: _Pixels, orientation: int) -> _Pixels:
    """A view of (rows, columns, 3) as EXIF's orientation says that it is to be seen."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
