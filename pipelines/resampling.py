"""Parts of an image resized by PyTorch on one thread, as the DALI graph of `fastselfie.pipelines.graph` does it.

A triangle as wide as an output pixel where the image shrinks, linear interpolation where it grows. PyTorch rounds to
uint8 between its two passes and, where the filter reaches beyond the edge, leaves out what is not there; DALI rounds
once and repeats the edge. So they differ by 1 level at most, but for the outermost pixels of a window that shrinks.

`torch.set_num_threads` is for the whole process, and so is left alone. These operations take no second thread,
whatever it says: PyTorch's resize of uint8 with channels last is one loop, and copies are NumPy's.

Shapes: H pixels a side of a view.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_LONGEST = 4  # views beside each other; of a longer image only the centre is computed, more slowly

_Pixels: TypeAlias = NDArray[np.uint8]

# What torch.nn.functional.interpolate calls, which itself has no output to write to and no scale apart from the sizes.
_resize: Callable[..., Tensor] = torch._C._nn._upsample_bilinear2d_aa


def resize_window(image: _Pixels, out_HH3: _Pixels) -> None:
    """``image``, uint8 (rows, columns, 3), resized into ``out_HH3``, uint8 (H, H, 3). Both are contiguous."""
    out_13HH = _tensor(out_HH3)
    _resize(_tensor(image), out_13HH.shape[2:], False, None, None, out=out_13HH)


def mirror(image_HH3: _Pixels, out_HH3: _Pixels) -> None:
    """Left and right exchanged, and so the channels: blue, green, red becomes red, green, blue. Both are contiguous.

    The bytes of a row are in reverse order then, which takes a fifth of the time that pixels of three bytes take.
    """
    size = len(image_HH3)
    words = f"u{math.gcd(3 * size, 8)}"
    before, after = (image.reshape(size, 3 * size).view(words) for image in (image_HH3, out_HH3))
    np.copyto(after, before[:, ::-1])
    after.byteswap(inplace=True)


def resize_centre(image: _Pixels, out_HH3: _Pixels, *, shorter_side: int) -> None:
    """The centre of ``image``, uint8 (rows, columns, 3), once its shorter side is resized: uint8 (H, H, 3)."""
    size, before = len(out_HH3), image.shape[:2]
    after = [math.floor(side * (shorter_side / min(before)) + 0.5) for side in before]
    start = [math.floor((side - size) * 0.5) for side in after]
    ends = [first + size for first in start]
    shrinks = [old / new for old, new in zip(before, after, strict=True)]
    if max(ends) > _LONGEST * size:
        (top, left), (bottom, right) = (
            [at * by for at, by in zip(side, shrinks, strict=True)] for side in (start, ends)
        )
        centre = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))
        np.copyto(out_HH3, np.asarray(centre))
        return
    # PyTorch begins at the image's corner, and ends where it is told to.
    needed = [math.ceil((end + 1) * shrink) + 1 for end, shrink in zip(ends, shrinks, strict=True)]
    corner = np.ascontiguousarray(image[: needed[0], : needed[1]])
    whole = np.empty((*ends, 3), np.uint8)
    _resize(_tensor(corner), ends, False, 1 / shrinks[0], 1 / shrinks[1], out=_tensor(whole))
    np.copyto(out_HH3, whole[start[0] :, start[1] :])


def _tensor(image: _Pixels) -> Tensor:
    """(rows, columns, 3), contiguous, as PyTorch's (1, 3, rows, columns), channels last, the same memory.

    NumPy turns it: each operation of PyTorch's lets other threads run first, and waits for them.
    """
    return torch.from_numpy(image.reshape(1, *image.shape).transpose(0, 3, 1, 2))
