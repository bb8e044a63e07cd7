"""Plain PyTorch of the operations around the trunk (paper, section 2.1).

Shapes: B images, S resident images, H = G * P pixels a side, G patches a side, P pixels a side of a patch,
N = G * G patches, m masked patches, D features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PadMode = Literal["zero", "reflect"]


def patch_batch(
    pixels: Tensor,
    *,
    patch: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    rows_B: Tensor | None = None,
    corner_B2: Tensor | None = None,
    flip_B: Tensor | None = None,
    pad: int = 0,
    pad_mode: PadMode = "zero",
    places_BN: Tensor | None = None,
) -> Tensor:
    """From uint8 pixels to the trunk's input: gather, pad, crop, flip, cut into patches, reorder, normalise, cast.

    Args:
        pixels: uint8, (B, H, H, 3) or a grid view (B, G, P, G, P, 3) of any strides; with ``rows_B``, (S, H, H, 3).
        patch: P. With P = H an image is one patch: a whole image for the trunk.
        mean, std: fp32 (3,), of pixels in [0, 1], on the device of ``pixels``.
        rows_B: int64 (B,), which resident image each is; all in order when not given.
        corner_B2: int64 (B, 2), row and column of the crop's corner in the padded image, in [0, 2 * pad]; the centre
            when not given.
        flip_B: bool (B,), mirror left to right after the crop; none when not given.
        pad_mode: black before normalisation, or reflection about the edge pixel.
        places_BN: int64 (B, N), the place in the grid, row by row, of each output patch; row by row when not given.

    Returns:
        (B * N, 3, P, P) of ``dtype`` in channels-last strides; row b * N + j shows place ``places_BN[b, j]``.
    """
    if pixels.dim() == 6:
        pixels = pixels.flatten(3, 4).flatten(1, 2)
    side, device = pixels.shape[1], pixels.device
    grid = side // patch
    rows_B = torch.arange(pixels.shape[0], device=device) if rows_B is None else rows_B
    B = rows_B.shape[0]
    if places_BN is None:
        places_BN = torch.arange(grid * grid, device=device).expand(B, -1)

    within_P = torch.arange(patch, device=device)
    y_BNP = (places_BN // grid)[:, :, None] * patch + within_P
    x_BNP = (places_BN % grid)[:, :, None] * patch + within_P
    if flip_B is not None:
        x_BNP = torch.where(flip_B[:, None, None], side - 1 - x_BNP, x_BNP)
    if corner_B2 is not None:
        y_BNP = y_BNP + (corner_B2[:, 0] - pad)[:, None, None]
        x_BNP = x_BNP + (corner_B2[:, 1] - pad)[:, None, None]
    y_in, y_BNP = _into_image(y_BNP, side, pad_mode)
    x_in, x_BNP = _into_image(x_BNP, side, pad_mode)
    out_BNPP3 = pixels[rows_B[:, None, None, None], y_BNP[:, :, :, None], x_BNP[:, :, None, :]]
    if pad and pad_mode == "zero":
        out_BNPP3 = out_BNPP3 * (y_in[:, :, :, None] & x_in[:, :, None, :])[..., None]
    out = (out_BNPP3.float() / 255 - mean) / std
    return out.to(dtype).reshape(-1, patch, patch, 3).permute(0, 3, 1, 2)


def _into_image(index: Tensor, side: int, pad_mode: PadMode) -> tuple[Tensor, Tensor]:
    """Whether each pixel index lies in the image, and the index that is read for it."""
    inside = (index >= 0) & (index < side)
    if pad_mode == "zero":
        return inside, index.clamp(0, side - 1)
    return inside, (side - 1) - ((side - 1) - index.abs()).abs()


def location_scores(u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float) -> Tensor:
    """How well masked patch k fits masked place j: fp32 (B, m, m), rows j. Arguments as in `location_head`."""
    with torch.autocast(u_BD.device.type, enabled=False):
        # Not positions[places]: that sums its gradient with atomics on a CPU, in an order that changes run by run.
        v_BmD = u_BD.float()[:, None] + F.embedding(places_Bm, positions_ND.float())
        return scale * v_BmD @ h_BmD.float().transpose(1, 2)


def location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The m-way question at each of m masked places (paper, section 2.1): which masked patch belongs here?

    v_j = u + e[place j], s_jk = scale * v_j . h_k, loss = mean over images and j of cross_entropy(s_j, target = j).
    Computed in fp32 whatever the inputs' dtype.

    Args:
        u_BD: (B, D), the image's summary.
        positions_ND: (N, D), the vectors e.
        places_Bm: int64 (B, m), where the masked patches come from.
        h_BmD: (B, m, D), the masked patches' features.

    Returns:
        The loss, fp32 scalar, and the number of right answers among B * m, int64 scalar.
    """
    with torch.autocast(u_BD.device.type, enabled=False):
        s_Bmm = location_scores(u_BD, positions_ND, places_Bm, h_BmD, scale)
        B, m, _ = s_Bmm.shape
        target = torch.arange(m, device=s_Bmm.device).expand(B, m)
        loss = F.cross_entropy(s_Bmm.reshape(B * m, m), target.reshape(-1))
        return loss, (s_Bmm.argmax(dim=2) == target).sum()
