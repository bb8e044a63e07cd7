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
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fastselfie.errors import UserError
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.jpeg_header import JpegHeader, jpeg_header
from fastselfie.pipelines.resampling import resize_centre, resize_window
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import View
from fastselfie.pipelines.window_numpy import random_windows

_CHUNK = 16  # images a task at most: what NumPy and the pool cost a call is shared by so many
_KEPT_BYTES = 48 << 20  # a thread keeps memory for images of 16 million pixels; larger ones get their own each time
_Pixels: TypeAlias = NDArray[np.uint8]


def require_turbo() -> None:
    """Raises `UserError` where simplejpeg is not installed."""
    if importlib.util.find_spec("simplejpeg") is None:
        raise UserError("decoding with libjpeg-turbo needs simplejpeg: pip install 'fastselfie[turbo]'")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A batch on its way. ``chunks`` give what is wrong, by the image's position."""

    pixels: Tensor
    windows_B4: Tensor | None
    chunks: Sequence[Future[dict[int, str]]]

    def bad(self) -> dict[int, str]:
        """Waits until it is done."""
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
        count, size, grid = len(encoded.data), self._view.size, self._view.grid
        assert count <= self._batch and len(self._under_way) < self._depth, "more than was announced"
        pixels = torch.empty(count, size, size, 3, dtype=torch.uint8)
        windows_B4 = torch.empty(count, 4, dtype=torch.int32) if encoded.draws is not None else None
        step = min(_CHUNK, math.ceil(count / self._threads))
        parts = [slice(first, min(first + step, count)) for first in range(0, count, step)]
        chunks = [self._pool.submit(self._decode, encoded, part, pixels, windows_B4) for part in parts]
        patches = pixels.view(count, grid, size // grid, grid, size // grid, 3)
        self._under_way.append(_Run(pixels=patches, windows_B4=windows_B4, chunks=chunks))

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
        return run.pixels, run.windows_B4

    def drop(self) -> None:
        """Let go of every run under way, good or bad."""
        for run in self._under_way:
            for chunk in run.chunks:
                chunk.cancel()
        self._under_way.clear()

    def _decode(self, encoded: Encoded, part: slice, pixels: Tensor, windows_B4: Tensor | None) -> dict[int, str]:
        """A task: the images of ``part``, written to their places in the outputs. What is wrong, by position."""
        positions = range(part.start, part.stop)
        headers = [jpeg_header(memoryview(data)) for data in encoded.data[part]]
        if encoded.draws is not None and windows_B4 is not None:
            shapes = np.array([header.turned_shape if header else (1, 1) for header in headers])
            windows_B4.numpy()[part] = random_windows(shapes, encoded.draws[part], self._view.min_area)
        bad = {}
        for position, header in zip(positions, headers, strict=True):
            try:
                self._decode_one(encoded, position, header, pixels[position], windows_B4)
            except BadImage as error:
                bad[position] = str(error)
            except MemoryError:
                bad[position] = "needs more memory to be decoded than there is"
        return bad

    def _decode_one(
        self, encoded: Encoded, position: int, header: JpegHeader | None, out_HH3: Tensor, windows_B4: Tensor | None
    ) -> None:
        image = self._whole(encoded.data[position], header)
        if encoded.draws is None or encoded.flip is None or windows_B4 is None:
            resize_centre(image, out_HH3, shorter_side=self._view.shorter_side)
            return
        window = windows_B4.numpy()[position]
        if header is None:  # its shape was not known before
            shape = np.array([image.shape[:2]])
            window[:] = random_windows(shape, encoded.draws[position : position + 1], self._view.min_area)[0]
        row, column, height, width = window.tolist()
        part = self._memory.contiguous(image[row : row + height, column : column + width])
        resize_window(part, out_HH3, flip=bool(encoded.flip[position]))

    def _whole(self, data: _Pixels, header: JpegHeader | None) -> _Pixels:
        """The whole image as a viewer shows it, uint8 (rows, columns, 3), until this thread's next."""
        if header is None or not header.usual:
            return decode_by_pillow(data)
        import simplejpeg  # an extra: only here

        try:
            stored = simplejpeg.decode_jpeg(data, "RGB", buffer=self._memory.pixels(header.rows * header.columns * 3))
        except ValueError as error:
            if re.search("memory", str(error), re.IGNORECASE):
                raise MemoryError from None
            raise BadImage("is damaged") from None
        if stored.shape[:2] != (header.rows, header.columns):  # it has a second header
            raise BadImage("is damaged")
        return turned(stored, header.orientation)


class _Memory(threading.local):
    """What a thread keeps from image to image, so that the system need not give it fresh pages each time."""

    def __init__(self) -> None:
        self._image, self._part = np.empty(0, np.uint8), np.empty(0, np.uint8)

    def pixels(self, size: int) -> _Pixels:
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
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # grey of 16 bits, which Pillow's own conversion cuts off at 255
                image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
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
