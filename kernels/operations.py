"""The operations around the trunk (paper, section 2.1), as everything else calls them.

Each checks its arguments, then runs a Triton kernel of `fastselfie.kernels.fused` or plain PyTorch of
`fastselfie.kernels.reference`, as `fastselfie.kernels.dispatch` says. What arguments mean and what comes back is told
here; both versions have these names and signatures. Kernels have first derivatives only and do not support
`torch.func`.

Shapes: B images, S resident images, H x W pixels, N patches an image of which n are visible and m masked, P pixels a
side of a patch, D features, h x w positions of a map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastselfie.kernels import reference
from fastselfie.kernels.checks import expect, expect_distinct, expect_tensor, expect_within, floats, require
from fastselfie.kernels.dispatch import fused
from fastselfie.kernels.reference import PadMode, image_size

LARGEST_QUESTION = LARGEST_GRID = 64
"""Masked patches and places that the kernels of `location_head` hold on chip."""


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
        pixels: uint8, (B, H, W, 3) or a grid view (B, G, P, G, P, 3) of any strides; with ``rows_B``, (S, H, W, 3).
        patch: P. With P = H = W an image is one patch: a whole image for the trunk.
        mean, std: fp32 (3,), of pixels in [0, 1], on the device of ``pixels``.
        dtype: fp32, bf16 or fp16.
        rows_B: int64 (B,), which resident image each is; all in order when not given.
        corner_B2: int64 (B, 2), row and column of the crop's corner in the padded image, in [0, 2 * pad]; the centre
            when not given.
        flip_B: bool (B,), mirror left to right after the crop; none when not given.
        pad_mode: black before normalisation, or reflection about the edge pixel.
        places_BN: int64 (B, N), the place in the grid, row by row, of each output patch; row by row when not given.

    Returns:
        (B * N, 3, P, P) of ``dtype`` in channels-last strides; row b * N + j shows place ``places_BN[b, j]``.

    Raises:
        ValueError: an argument is not as said; out of range values are found in the debug mode alone.
    """
    expect_tensor("pixels", pixels)
    device = pixels.device
    if pixels.dim() == 6 and rows_B is None:
        cell = pixels.shape[2]
        expect("pixels", pixels, (torch.uint8,), ("B", "G", cell, "G", cell, 3), device)
    else:
        expect("pixels", pixels, (torch.uint8,), ("B" if rows_B is None else "S", "H", "W", 3), device)
    H, W = image_size(pixels)
    kernel = fused("patch_batch", device, H, patch)
    require(patch >= 1 and H % patch == 0 and W % patch == 0, f"patch: expected a divisor of {H} and {W}, got {patch}")
    require(dtype in floats(kernel), f"dtype: expected float32, bfloat16 or float16, got {dtype!r}")
    require(pad_mode in ("zero", "reflect"), f"pad_mode: expected zero or reflect, got {pad_mode!r}")
    require(0 <= pad < min(H, W), f"pad: expected at least 0 and less than the image's {min(H, W)} pixels, got {pad}")
    expect("mean", mean, (torch.float32,), (3,), device)
    expect("std", std, (torch.float32,), (3,), device)
    B, N = pixels.shape[0], (H // patch) * (W // patch)
    if rows_B is not None:
        expect("rows_B", rows_B, (torch.int64,), ("B",), device)
        B = rows_B.shape[0]
        expect_within("rows_B", rows_B, pixels.shape[0])
    if corner_B2 is not None:
        expect("corner_B2", corner_B2, (torch.int64,), (B, 2), device)
        expect_within("corner_B2", corner_B2, 2 * pad + 1)
    if flip_B is not None:
        expect("flip_B", flip_B, (torch.bool,), (B,), device)
    if places_BN is not None:
        expect("places_BN", places_BN, (torch.int64,), (B, N), device)
        expect_within("places_BN", places_BN, N)
    settings: dict[str, Any] = {
        "patch": patch, "mean": mean, "std": std, "dtype": dtype, "rows_B": rows_B, "corner_B2": corner_B2,
        "flip_B": flip_B, "pad": pad, "pad_mode": pad_mode, "places_BN": places_BN,
    }  # fmt: skip
    if kernel:
        from fastselfie.kernels.fused.patch_batch import patch_batch as run

        return run(pixels, **settings)
    return reference.patch_batch(pixels, **settings)


def channel_sums(maps: Tensor, *, group: str = "") -> Tensor:
    """Sum and sum of squares of each channel: what a batch norm's mean and variance are made of.

    Args:
        maps: fp32, bf16 or fp16 (M, D, h, w).
        group: name of the process group over which they are added up, as SyncBN does; this process alone when empty.

    Returns:
        fp64 (2, D), for `patch_tokens` alone: the kernel leaves it the gradient that goes through them.

    Raises:
        ValueError: ``maps`` is not as said.
    """
    expect_tensor("maps", maps)
    kernel = fused("patch_tokens", maps.device, *maps.shape[1:])  # one choice for both: the gradient is shared
    expect("maps", maps, floats(kernel), ("M", "D", "h", "w"), maps.device)
    if kernel:
        from fastselfie.kernels.fused.channel_sums import channel_sums as run

        return run(maps, group=group)
    return reference.channel_sums(maps, group=group)


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
    """From the trunk's last maps to the pooler's input: batch norm, ReLU, average pooling, u0 in front, positions.

    Computed in fp32 whatever the maps' dtype.

    Args:
        maps: fp32, bf16 or fp16 (B * N, D, h, w), before the final batch norm, the n visible patches of each image
            first. Read as they are when channels-last, else copied into that layout once a pass.
        statistics_2D: fp32 (2, D), mean and biased variance to normalise with.
        weight_D, bias_D: fp32 (D,), batch norm's; ``eps`` is too.
        u0_D: (D,), the token in front.
        positions_ND: (N, D), added to the visible patches' tokens, or None.
        places_BN: int64 (B, N), each row a permutation of the places.
        visible: n, from 1 to N - 1.
        count: values a channel that the statistics are of, when they are those of ``maps`` (over ``group``): then the
            gradient of ``maps`` goes through them too. 0 when they are constants.
        group: the process group that `channel_sums` added them up over.

    Returns:
        Tokens (B, 1 + n, D), of the maps' dtype or with positions of the wider of both, and the masked patches'
        features (B, m, D) of the maps' dtype.

    Raises:
        ValueError: an argument is not as said; whether rows are permutations is looked at in the debug mode alone.
    """
    expect_tensor("maps", maps)
    device, kernel = maps.device, fused("patch_tokens", maps.device, *maps.shape[1:])
    expect("maps", maps, floats(kernel), ("B * N", "D", "h", "w"), device)
    expect("places_BN", places_BN, (torch.int64,), ("B", "N"), device)
    (B, N), (M, D) = places_BN.shape, maps.shape[:2]
    require(M == B * N, f"maps: expected {B} * {N} maps as places_BN has entries, got {M}")
    require(0 < visible < N, f"visible: expected 1 to {N - 1} of {N} patches, got {visible}")
    wide = (torch.float32,) if kernel else (torch.float32, torch.float64)
    expect("statistics_2D", statistics_2D, wide, (2, D), device)
    expect("weight_D", weight_D, wide, (D,), device)
    expect("bias_D", bias_D, wide, (D,), device)
    expect("u0_D", u0_D, floats(kernel), (D,), device)
    if positions_ND is not None:
        expect("positions_ND", positions_ND, floats(kernel), (N, D), device)
    require(count >= 0, f"count: expected at least 0, got {count}")
    expect_within("places_BN", places_BN, N)
    expect_distinct("places_BN", places_BN)
    arguments = (maps, statistics_2D, weight_D, bias_D, u0_D, positions_ND, places_BN, visible)
    if kernel:
        from fastselfie.kernels.fused.patch_tokens import patch_tokens as run

        return run(*arguments, eps=eps, count=count, group=group)
    return reference.patch_tokens(*arguments, eps=eps, count=count, group=group)


def location_head(
    u_BD: Tensor, positions_ND: Tensor, places_Bm: Tensor, h_BmD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The m-way question at each of m masked places (paper, section 2.1): which masked patch belongs here?

    v_j = u + e[place j], s_jk = scale * v_j . h_k, loss = mean over images and j of cross_entropy(s_j, target = j).
    Computed to fp32's accuracy whatever the inputs' dtype.

    Args:
        u_BD: (B, D), the image's summary.
        positions_ND: (N, D), the vectors e.
        places_Bm: int64 (B, m), where the masked patches come from, m distinct places.
        h_BmD: (B, m, D), the masked patches' features. The kernel takes m and N up to 64 and D a multiple of
            16; left to itself the dispatch gives it nothing else.
        scale: a number; no gradient reaches it.

    Returns:
        The loss, scalar in fp32 or as wide as the inputs, and the number of right answers among B * m, int64 scalar.

    Raises:
        ValueError: an argument is not as said; whether places repeat is looked at in the debug mode alone.
    """
    expect_tensor("h_BmD", h_BmD, "B", "m", "D")
    expect_tensor("positions_ND", positions_ND, "N", "D")
    require(
        not isinstance(scale, Tensor),
        "scale: expected a number, got a tensor; one that is learnt can multiply u_BD and positions_ND",
    )
    device, (B, m, D), N = h_BmD.device, h_BmD.shape, positions_ND.shape[0]
    fits = m <= LARGEST_QUESTION and N <= LARGEST_GRID and D % 16 == 0
    kernel = fused("location_head", device, m, D, fits=fits)
    expect("h_BmD", h_BmD, floats(kernel), ("B", "m", "D"), device)
    expect("u_BD", u_BD, floats(kernel), (B, D), device)
    expect("positions_ND", positions_ND, floats(kernel), ("N", D), device)
    expect("places_Bm", places_Bm, (torch.int64,), (B, m), device)
    require(m >= 1, "h_BmD: expected at least 1 masked patch, got m = 0")
    if kernel:
        require(m <= LARGEST_QUESTION, f"h_BmD: the kernel takes up to {LARGEST_QUESTION} masked patches, got m = {m}")
        require(N <= LARGEST_GRID, f"positions_ND: the kernel takes up to {LARGEST_GRID} places, got N = {N}")
        require(D % 16 == 0, f"h_BmD: the kernel takes a multiple of 16 features, got D = {D}")
    expect_within("places_Bm", places_Bm, N)
    expect_distinct("places_Bm", places_Bm)
    if kernel:
        from fastselfie.kernels.fused.location_head import location_head as run

        return run(u_BD, positions_ND, places_Bm, h_BmD, scale)
    return reference.location_head(u_BD, positions_ND, places_Bm, h_BmD, scale)
