"""Parts of an image resized by PyTorch on one thread, as the DALI graph of `fastselfie.pipelines.graph` does it.

A triangle as wide as an output pixel where the image shrinks, linear interpolation where it grows. PyTorch rounds to
uint8 between its two passes and, where the filter reaches beyond the edge, leaves out what is not there; DALI rounds
once and repeats the edge. So they differ by 1 level at most, but for the outermost pixels of a window that shrinks.

`torch.set_num_threads` is for the whole process. These operations ask for no second thread, whatever is set: the
resize of uint8 with channels last is one loop, and a flip counts rows, not pixels. Copies are NumPy's for that reason.

Shapes: H pixels a side of a view.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_LONGEST = 4  # views beside each other; of a longer image only the centre is computed, more slowly

# The public interpolate has no output to write to and no scale apart from the sizes.
_resize = torch.ops.aten._upsample_bilinear2d_aa.out


def resize_window(image: NDArray[np.uint8], out_HH3: Tensor, *, flip: bool) -> None:
    """``image``, uint8 (rows, columns, 3) and contiguous, resized to uint8 (H, H, 3), mirrored where asked."""
    size = out_HH3.shape[0]
    _resize(_planes(torch.from_numpy(image)), [size, size], False, None, None, out=_planes(out_HH3))
    if flip:
        np.copyto(out_HH3.numpy(), torch.flip(out_HH3, [1]).numpy())


def resize_centre(image: NDArray[np.uint8], out_HH3: Tensor, *, shorter_side: int) -> None:
    """The centre of ``image``, uint8 (rows, columns, 3), once its shorter side is resized: uint8 (H, H, 3)."""
    size, before = out_HH3.shape[0], image.shape[:2]
    scale = shorter_side / min(before)
    after = [math.floor(side * scale + 0.5) for side in before]
    start = [math.floor((side - size) * 0.5) for side in after]
    shrinks = [old / new for old, new in zip(before, after, strict=True)]
    if max(start) > _LONGEST * size:
        top, left = (first * shrink for first, shrink in zip(start, shrinks, strict=True))
        bottom, right = ((first + size) * shrink for first, shrink in zip(start, shrinks, strict=True))
        centre = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))
        np.copyto(out_HH3.numpy(), np.asarray(centre))
        return
    # PyTorch begins at the image's corner, and ends where it is told to.
    ends = [first + size for first in start]
    needed = [math.ceil((end + 1) * shrink) + 1 for end, shrink in zip(ends, shrinks, strict=True)]
    corner = torch.from_numpy(np.ascontiguousarray(image[: needed[0], : needed[1]]))
    whole = torch.empty(*ends, 3, dtype=torch.uint8)
    _resize(_planes(corner), ends, False, 1 / shrinks[0], 1 / shrinks[1], out=_planes(whole))
    np.copyto(out_HH3.numpy(), whole.numpy()[start[0] :, start[1] :])


def _planes(image: Tensor) -> Tensor:
    """(rows, columns, 3) as PyTorch's (1, 3, rows, columns), the same memory."""
    return image.permute(2, 0, 1)[None]
