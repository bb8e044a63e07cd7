"""Views to normalised images on a CPU, for loops that take no patches: in threads, a few images in each core's cache.

Shapes: B images of H x H pixels, b of them at a time.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.pipelines.recycled import RecycledMemory

_AT_A_TIME = 1 << 17  # numbers of a task: one image of 224 pixels, 42 of 32, which by themselves cost more to hand out
_ALONE = 1 << 14  # numbers that PyTorch converts without calling threads of its own, which would wait for each other


class Normaliser:
    """``(pixels / 255 - mean) / std`` of uint8 pixels, to the bit as `fastselfie.kernels.patch_batch` has it."""

    def __init__(self, *, size: int, mean: Tensor, std: Tensor, dtype: torch.dtype, threads: int) -> None:
        """Args: size: H. mean, std: fp32 (3,), of pixels in [0, 1]. dtype: of the images, fp32 or bf16."""
        # A row of pixels at a time: three numbers at a time are slow.
        self._mean, self._std = np.tile(mean.numpy(), size), np.tile(std.numpy(), size)
        self._size, self._dtype, self._some = size, dtype, max(1, _AT_A_TIME // (3 * size**2))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="normalise")
        self._images, self._rows = RecycledMemory(), threading.local()

    def __call__(self, pixels_BHH3: Tensor) -> Tensor:
        """Uint8 (B, H, H, 3) to (B, 3, H, H) channels-last."""
        images_BHH3 = self._images.empty(*pixels_BHH3.shape, dtype=self._dtype)
        list(self._pool.map(self._normalise, pixels_BHH3.split(self._some), images_BHH3.split(self._some)))
        return images_BHH3.permute(0, 3, 1, 2)

    def _normalise(self, pixels_bHH3: Tensor, images_bHH3: Tensor) -> None:
        count, width = len(pixels_bHH3) * self._size, 3 * self._size
        if self._dtype == torch.float32:
            self._into(pixels_bHH3, images_bHH3.view(count, width).numpy())
            return
        if not hasattr(self._rows, "memory"):
            self._rows.memory = np.empty((self._some * self._size, width), np.float32)
        rows = self._rows.memory[:count]
        self._into(pixels_bHH3, rows)
        numbers = torch.from_numpy(rows).view(-1)
        for some, wide in zip(images_bHH3.view(-1).split(_ALONE), numbers.split(_ALONE), strict=True):
            some.copy_(wide)

    def _into(self, pixels_bHH3: Tensor, rows: NDArray[np.float32]) -> None:
        """Rows: fp32 (b * H, 3 * H)."""
        np.copyto(rows, pixels_bHH3.reshape(rows.shape).numpy())
        rows /= np.float32(255)
        rows -= self._mean
        rows /= self._std
