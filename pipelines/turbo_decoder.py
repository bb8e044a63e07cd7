"""Files to views on the CPU by libjpeg-turbo, Pillow and PyTorch: the DALI decoder's work in less time.

The usual JPEG file is decoded by simplejpeg into memory that its thread keeps; PNG and the rest by Pillow. Windows are
exactly those of the DALI graph; `fastselfie.pipelines.resampling` says how far pixels are from its own.

Shapes: B images a batch, G patches a side, P pixels a side of a patch, H = G * P.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.image_decoding import (
    Colors,
    ThreadMemory,
    decode_image,
    decode_window,
    require_turbo,
    usual_header,
)
from fastselfie.pipelines.jpeg_header import JpegHeader
from fastselfie.pipelines.recycled import RecycledMemory
from fastselfie.pipelines.resampling import mirror, resize_centre, resize_window
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import View
from fastselfie.pipelines.window_numpy import random_windows

_CHUNK = 8  # images a task at most: enough to share what the pool costs a call, few enough to end together


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A batch on its way.

    Attributes:
        headers: None where an image is not of the usual JPEG kinds. pixels_BHH3: uint8.
        windows_B4: int32, first row, first column, height, width, of images with a header; None for a plain view.
        chunks: what is wrong, by the image's position, as soon as they are decoded.
    """

    encoded: Encoded
    headers: Sequence[JpegHeader | None]
    pixels_BHH3: NDArray[np.uint8]
    windows_B4: NDArray[np.int32] | None
    chunks: list[Future[dict[int, str]]] = field(default_factory=list)

    def bad(self) -> dict[int, str]:
        """Waits until it is decoded."""
        found: dict[int, str] = {}
        for chunk in self.chunks:
            found.update(chunk.result())
        return found


class TurboDecoder:
    """Decodes files to a view in the memory of the CPU; `fastselfie.pipelines.decoder.DaliDecoder` is its twin.

    After a failure it starts anew: what is scheduled next is decoded, what was under way is forgotten.
    """

    def __init__(self, view: View, *, batch: int, threads: int, depth: int = 1) -> None:
        """Args: batch: images of a run at most. depth: runs under way at most."""
        require_turbo()
        self._view, self._batch, self._threads, self._depth = view, batch, threads, depth
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._memory, self._views = ThreadMemory(), RecycledMemory()
        self._under_way: deque[_Run] = deque()

    def schedule(self, encoded: Encoded) -> None:
        """Start decoding. What is wrong with a file shows in `take`."""
        count, size = len(encoded.data), self._view.size
        assert count <= self._batch
        assert len(self._under_way) < self._depth
        headers = [usual_header(data) for data in encoded.data]
        windows_B4 = None
        if encoded.draws is not None:
            shape_B2 = np.array([header.turned_shape if header else (1, 1) for header in headers])
            windows_B4 = random_windows(shape_B2, encoded.draws, self._view.min_area)
        pixels_BHH3 = self._views.empty(count, size, size, 3, dtype=torch.uint8).numpy()
        run = _Run(encoded=encoded, headers=headers, pixels_BHH3=pixels_BHH3, windows_B4=windows_B4)
        step = min(_CHUNK, math.ceil(count / self._threads))
        for first in range(0, count, step):
            run.chunks.append(self._pool.submit(self._decode, run, range(first, min(first + step, count))))
        self._under_way.append(run)

    def take(self) -> Tensor:
        """The oldest run's pixels: uint8 (B, G, P, G, P, 3).

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
        return torch.from_numpy(run.pixels_BHH3).view(-1, grid, patch, grid, patch, 3)

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
        encoded, header, out = run.encoded, run.headers[position], run.pixels_BHH3[position]
        if encoded.flip is None:
            image = decode_image(encoded.data[position], header, self._memory)
            resize_centre(image, out, shorter_side=self._view.shorter_side)
            return
        flip = bool(encoded.flip[position])
        part = self._memory.contiguous(self._window(run, position, "BGR" if flip else "RGB"))
        if flip:
            view = self._memory.view(self._view.size)
            resize_window(part, view)
            mirror(view, out)  # which exchanges channels, too
        else:
            resize_window(part, out)

    def _window(self, run: _Run, position: int, colors: Colors) -> NDArray[np.uint8]:
        """The pixels of its window, (height, width, 3)."""
        encoded, header, data = run.encoded, run.headers[position], run.encoded.data[position]
        assert run.windows_B4 is not None
        assert encoded.draws is not None
        if header is not None:
            row, column, height, width = run.windows_B4[position].tolist()
            return decode_window(data, header, (row, column, height, width), self._memory, colors)
        image = decode_image(data, None, self._memory, colors=colors)
        draws = encoded.draws[position : position + 1]  # the shape was not known before
        row, column, height, width = random_windows(np.array([image.shape[:2]]), draws, self._view.min_area)[0].tolist()
        return image[row : row + height, column : column + width]
