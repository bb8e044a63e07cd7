"""Views to normalised images on a CPU, for loops that take no patches: an image a thread, in that core's cache.

Shapes: B images of H x H pixels.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.pipelines.recycled import RecycledMemory

_ALONE = 1 << 14  # numbers that PyTorch converts without calling threads of its own, which would wait for each other


class Normaliser:
    """``(pixels / 255 - mean) / std`` of uint8 pixels, to the bit as `fastselfie.kernels.patch_batch` has it."""

    def __init__(self, *, size: int, mean: Tensor, std: Tensor, dtype: torch.dtype, threads: int) -> None:
        """Args: size: H. mean, std: fp32 (3,), of pixels in [0, 1]. dtype: of the images, fp32 or bf16."""
        # A row of pixels at a time: three numbers at a time are slow.
        self._mean, self._std = np.tile(mean.numpy(), size), np.tile(std.numpy(), size)
        self._size, self._dtype = size, dtype
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="normalise")
        self._images, self._rows = RecycledMemory(), threading.local()

    def __call__(self, pixels_BHH3: Tensor) -> Tensor:
        """Uint8 (B, H, H, 3) to (B, 3, H, H) channels-last."""
        images_BHH3 = self._images.empty(*pixels_BHH3.shape, dtype=self._dtype)
        list(self._pool.map(self._normalise, pixels_BHH3, images_BHH3))
        return images_BHH3.permute(0, 3, 1, 2)

    def _normalise(self, pixels_HH3: Tensor, image_HH3: Tensor) -> None:
        if self._dtype == torch.float32:
            self._into(pixels_HH3, image_HH3.view(self._size, -1).numpy())
            return
        if not hasattr(self._rows, "memory"):
            self._rows.memory = np.empty((self._size, 3 * self._size), np.float32)
        self._into(pixels_HH3, self._rows.memory)
        numbers = torch.from_numpy(self._rows.memory).view(-1)
        for some, wide in zip(image_HH3.view(-1).split(_ALONE), numbers.split(_ALONE), strict=True):
            some.copy_(wide)

    def _into(self, pixels_HH3: Tensor, rows: NDArray[np.float32]) -> None:
        """Rows: fp32 (H, 3 * H)."""
        np.copyto(rows, pixels_HH3.reshape(self._size, -1).numpy())
        rows /= np.float32(255)
        rows -= self._mean
        rows /= self._std
