"""Images into patches and patches' maps into whole ones, without the loader's help: for encoders that see patches.

Shapes: B images of H x H pixels, G patches a side, N = G * G, P = H / G pixels a side of a patch, C channels, h x w
positions of a patch's map.
"""

from __future__ import annotations

from torch import Tensor


def cut(images: Tensor, grid: int) -> Tensor:
    """(B, C, H, H) to (B * N, C, P, P) channels-last: image by image, row by row in the grid."""
    side = images.shape[2] // grid
    tiles = images.permute(0, 2, 3, 1).unflatten(2, (grid, side)).unflatten(1, (grid, side))
    return tiles.transpose(2, 3).flatten(0, 2).contiguous().permute(0, 3, 1, 2)


def join(maps: Tensor, grid: int) -> Tensor:
    """(B * N, C, h, w) to (B, C, G * h, G * w) channels-last: what `cut` would have made them of."""
    tiles = maps.permute(0, 2, 3, 1).unflatten(0, (-1, grid, grid))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2).contiguous().permute(0, 3, 1, 2)
