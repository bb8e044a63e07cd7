"""Plain PyTorch of the operations around the trunk (paper, section 2.1). It serves the CPU; kernels are held to it.

Shapes: B images, S resident images, H = G * P pixels a side, G patches a side, P pixels a side of a patch,
N = G * G patches, m masked patches, D features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.kernels.collective import AddedUp

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
    """See `fastselfie.kernels.operations.patch_batch`."""
    if pixels.dim() == 6:
        pixels = pixels.flatten(3, 4).flatten(1, 2)
    (H, W), device = image_size(pixels), pixels.device
    grid_y, grid_x = H // patch, W // patch
    if rows_B is None and corner_B2 is None and flip_B is None and places_BN is None:  # nothing moves
        out_BNPP3 = pixels.reshape(-1, grid_y, patch, grid_x, patch, 3).transpose(2, 3)
        return _normalised(out_BNPP3, mean, std, dtype)
    rows_B = torch.arange(pixels.shape[0], device=device) if rows_B is None else rows_B
    B = rows_B.shape[0]
    if places_BN is None:
        places_BN = torch.arange(grid_y * grid_x, device=device).expand(B, -1)

    within_P = torch.arange(patch, device=device)
    y_BNP = (places_BN // grid_x)[:, :, None] * patch + within_P
    x_BNP = (places_BN % grid_x)[:, :, None] * patch + within_P
    if flip_B is not None:
        x_BNP = torch.where(flip_B[:, None, None], W - 1 - x_BNP, x_BNP)
    if corner_B2 is not None:
        y_BNP = y_BNP + (corner_B2[:, 0] - pad)[:, None, None]
        x_BNP = x_BNP + (corner_B2[:, 1] - pad)[:, None, None]
    y_in, y_BNP = _into_image(y_BNP, H, pad_mode)
    x_in, x_BNP = _into_image(x_BNP, W, pad_mode)
    out_BNPP3 = _gathered(pixels, rows_B, y_BNP, x_BNP)
    if pad and pad_mode == "zero":
        out_BNPP3 = out_BNPP3 * (y_in[:, :, :, None] & x_in[:, :, None, :])[..., None]
    return _normalised(out_BNPP3, mean, std, dtype)


def _gathered(pixels: Tensor, rows_B: Tensor, y_BNP: Tensor, x_BNP: Tensor) -> Tensor:
    """The pixels at rows y and columns x of images: (B, N, P, P, 3). By one index a pixel: `index_select` copies its
    three numbers at once, and indexing by three tensors takes a CPU four times as long."""
    if not pixels.is_contiguous():  # else all S would be copied
        pixels, rows_B = pixels[rows_B].contiguous(), torch.arange(len(rows_B), device=pixels.device)
    H, W = pixels.shape[1:3]
    line_BNP = rows_B[:, None, None] * H + y_BNP
    pixel_BNPP = line_BNP[:, :, :, None] * W + x_BNP[:, :, None, :]
    return pixels.view(-1, 3).index_select(0, pixel_BNPP.flatten()).view(*pixel_BNPP.shape, 3)


def _normalised(pixels: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., P, P, 3) to (B * N, 3, P, P) channels-last. Row by row: a CPU is slow at three numbers at a time."""
    patch = pixels.shape[-2]
    rows = pixels.reshape(-1, 3 * patch).float()
    rows.div_(255).sub_(mean.repeat(patch)).div_(std.repeat(patch))
    return rows.to(dtype).view(-1, patch, patch, 3).permute(0, 3, 1, 2)


def image_size(pixels: Tensor) -> tuple[int, int]:
    """H and W of images (B, H, W, 3) or of a grid view (B, G, P, G, P, 3)."""
    if pixels.dim() == 6:
        return pixels.shape[1] * pixels.shape[2], pixels.shape[3] * pixels.shape[4]
    return pixels.shape[1], pixels.shape[2]


def _into_image(index: Tensor, side: int, pad_mode: PadMode) -> tuple[Tensor, Tensor]:
    """Whether each pixel index lies in the image, and the index that is read for it."""
    inside = (index >= 0) & (index < side)
    if pad_mode == "zero":
        return inside, index.clamp(0, side - 1)
    return inside, (side - 1) - ((side - 1) - index.abs()).abs()


def channel_sums(maps: Tensor, *, group: str = "") -> Tensor:
    """See `fastselfie.kernels.operations.channel_sums`."""
    x = maps.to(torch.promote_types(maps.dtype, torch.float32))
    sums_2D = torch.stack([x.sum(dim=(0, 2, 3), dtype=torch.float64), (x * x).sum(dim=(0, 2, 3), dtype=torch.float64)])
    return AddedUp.apply(sums_2D, group) if group else sums_2D


def patch_tokens(
    maps: Tensor,
    statistics_2D: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    u0_D: Tensor,
    positions_ND: Tensor | None,
    places_BN: Tensor,
    visible: int,
    *,
    eps: float,
    count: int,
    group: str = "",
) -> tuple[Tensor, Tensor]:
    """See `fastselfie.kernels.operations.patch_tokens`. The gradient through the statistics goes by their own graph."""
    x = maps.to(torch.promote_types(maps.dtype, torch.float32))
    mean_D, variance_D = (statistics_2D if count else statistics_2D.detach()).to(x.dtype)
    slope_D = weight_D / (variance_D + eps).sqrt()
    z = (x - mean_D[:, None, None]) * slope_D[:, None, None] + bias_D[:, None, None]
    pooled_BND = F.relu(z).mean(dim=(2, 3)).unflatten(0, places_BN.shape)
    tokens_BnD, features_BmD = pooled_BND[:, :visible], pooled_BND[:, visible:]
    if positions_ND is not None:
        tokens_BnD = tokens_BnD + F.embedding(places_BN[:, :visible], positions_ND)
    u0_B1D = u0_D.to(tokens_BnD.dtype).expand(places_BN.shape[0], 1, -1)
    tokens = torch.cat([u0_B1D, tokens_BnD], dim=1).to(token_dtype(maps, positions_ND))
    return tokens, features_BmD.to(maps.dtype)


def token_dtype(maps: Tensor, positions_ND: Tensor | None) -> torch.dtype:
    """Tokens are of the maps' dtype, or with positions of the wider of both."""
    return maps.dtype if positions_ND is None else torch.promote_types(maps.dtype, positions_ND.dtype)


def location_scores(u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float) -> Tensor:
    """How well masked patch k fits masked place j: fp32 (B, m, m), rows j. Arguments as in `location_head`."""
    with torch.autocast(u_BD.device.type, enabled=False):
        # Not positions[places]: that sums its gradient with atomics on a CPU, in an order that changes run by run.
        wide = torch.promote_types(torch.promote_types(u_BD.dtype, h_BmD.dtype), torch.float32)
        v_BmD = u_BD.to(wide)[:, None] + F.embedding(places_Bm, positions_ND.to(wide))
        return scale * v_BmD @ h_BmD.to(wide).transpose(1, 2)


def location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `fastselfie.kernels.operations.location_head`."""
    s_Bmm = location_scores(u_BD, positions_ND, places_Bm, h_BmD, scale)
    B, m, _ = s_Bmm.shape
    target = torch.arange(m, device=s_Bmm.device).expand(B, m)
    loss = F.cross_entropy(s_Bmm.reshape(B * m, m), target.reshape(-1))
    return loss, (s_Bmm.argmax(dim=2) == target).sum()
