"""The `patch_batch` kernel against NumPy in fp64: pad, crop, mirror and cut one patch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.kernels import patch_batch, using
from tests.kernel_checks import DEVICE, assert_as_exact, generator, orders

pytest.importorskip("triton")
launcher: Any = pytest.importorskip("fastselfie.kernels.fused.patch_batch")

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [  # H, W, patch, images
    (16, 16, 4, 3),
    (16, 16, 4, 1),
    (12, 24, 6, 2),  # not square; 6, 7, 14: no power of two
    (21, 14, 7, 2),
    (28, 28, 14, 2),
    (24, 12, 12, 3),
    (15, 10, 5, 2),
    (6, 4, 1, 2),
    (32, 32, 32, 2),  # whole images
    (96, 96, 96, 1),  # more columns than a block has
    (10, 10, 10, 2),
]


def images_of(pixels: Tensor) -> NDArray[np.uint8]:
    """(B, H, W, 3) of images or of a grid view, whose cells are put side by side."""
    if pixels.dim() == 4:
        return pixels.cpu().numpy()
    cells = pixels.cpu().numpy()
    lines = np.concatenate([cells[:, :, :, x] for x in range(cells.shape[3])], axis=3)
    return np.concatenate([lines[:, y] for y in range(cells.shape[1])], axis=1)


def brute_force(
    pixels: Tensor, *, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype, rows_B: Tensor | None = None,
    corner_B2: Tensor | None = None, flip_B: Tensor | None = None, pad: int = 0, pad_mode: str = "zero",
    places_BN: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What `patch_batch` returns, in fp64."""
    images, shift, size = images_of(pixels), mean.double().cpu().numpy(), std.double().cpu().numpy()
    rows = range(len(images)) if rows_B is None else rows_B.tolist()
    H, W = images.shape[1:3]
    out = []
    for b, row in enumerate(rows):
        margin = ((pad, pad), (pad, pad), (0, 0))
        padded = np.pad(images[row], margin, mode="constant" if pad_mode == "zero" else "reflect")
        y, x = (pad, pad) if corner_B2 is None else corner_B2[b].tolist()
        view = padded[y : y + H, x : x + W]
        if flip_B is not None and bool(flip_B[b]):
            view = view[:, ::-1]
        for place in range((H // patch) * (W // patch)) if places_BN is None else places_BN[b].tolist():
            i, j = divmod(place, W // patch)
            cut = view[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            out.append(((cut.astype(np.float64) / 255 - shift) / size).transpose(2, 0, 1))
    return torch.tensor(np.stack(out), device=DEVICE)


def random_pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(sum(shape)))


def choices(B: int, H: int, W: int, patch: int, pad: int) -> dict[str, Any]:
    """Corners, mirrorings (both kinds) and orders of the places."""
    return {
        "corner_B2": torch.randint(0, 2 * pad + 1, (B, 2), generator=generator(pad)),
        "flip_B": torch.arange(B) % 2 == 0,
        "places_BN": orders(B, (H // patch) * (W // patch)),
    }


def check(pixels: Tensor, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Tensor:
    """Compare the kernel with the truth; its output."""
    settings = {"mean": MEAN, "std": STD, "dtype": dtype} | settings
    settings = {key: value.to(DEVICE) if isinstance(value, Tensor) else value for key, value in settings.items()}
    with using("on"):
        actual = patch_batch(pixels, **settings)
    with using("off"):
        plain = patch_batch(pixels, **settings)
    P = settings["patch"]
    assert actual.stride()[1:] == (1, 3 * P, 3)  # channels-last
    assert_as_exact(actual, plain, brute_force(pixels, **settings), str(dtype))
    return actual


@pytest.mark.parametrize(("H", "W", "patch", "B"), SIZES)
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_everything_at_once(H: int, W: int, patch: int, B: int, pad_mode: str) -> None:
    pad = 3
    pixels = random_pixels(B, H, W, 3).to(DEVICE)
    check(pixels, patch=patch, pad=pad, pad_mode=pad_mode, **choices(B, H, W, patch, pad))


@pytest.mark.parametrize(("H", "W", "patch", "B"), SIZES)
def test_images_as_they_are(H: int, W: int, patch: int, B: int) -> None:
    check(random_pixels(B, H, W, 3).to(DEVICE), patch=patch)


@pytest.mark.parametrize("name", ["corner_B2", "flip_B", "places_BN"])
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
@pytest.mark.parametrize("pad", [0, 4])
def test_each_choice_alone(name: str, pad_mode: str, pad: int) -> None:
    choice = {name: choices(4, 16, 16, 8, pad)[name]}
    check(random_pixels(4, 16, 16, 3).to(DEVICE), patch=8, pad=pad, pad_mode=pad_mode, **choice)


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_every_corner_at_the_widest_padding(pad_mode: str) -> None:
    side = 4
    pad = side - 1
    corners = torch.cartesian_prod(torch.arange(2 * pad + 1), torch.arange(2 * pad + 1))
    pixels = random_pixels(len(corners), side, side, 3).to(DEVICE)
    for flip_B in (torch.zeros(len(corners), dtype=torch.bool), torch.ones(len(corners), dtype=torch.bool)):
        check(pixels, patch=2, pad=pad, pad_mode=pad_mode, corner_B2=corners, flip_B=flip_B)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch", [8, 6])
def test_dtypes(dtype: torch.dtype, patch: int) -> None:
    side = 4 * patch
    pixels = random_pixels(3, side, side, 3).to(DEVICE)
    for settings in ({}, {"pad": 2} | choices(3, side, side, patch, 2)):
        check(pixels, patch=patch, dtype=dtype, **settings)


def laid_out(layout: str, images: Tensor) -> Tensor:
    """Images, or a grid view of cells of 4 pixels with the same content, whose memory is laid out as said."""
    B, H, W, _ = images.shape
    if layout == "window":  # a region of a larger frame, as a decoder might leave it
        frame = torch.full((B, H + 5, W + 3, 3), 255, dtype=torch.uint8, device=DEVICE)
        frame[:, 2 : 2 + H, 3:] = images
        return frame[:, 2 : 2 + H, 3:]
    if layout == "planes":
        return images.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    if layout == "every third pixel of planes":
        return images.permute(3, 0, 1, 2).repeat_interleave(3, dim=3)[..., ::3].permute(1, 2, 3, 0)
    if layout == "channels first":
        return images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    if layout == "every second image":
        return images.repeat_interleave(2, dim=0)[::2]
    if layout == "wider pixels":
        return torch.cat([images, images + 1], dim=3)[..., :3]
    cells = images.unflatten(2, (-1, 4)).unflatten(1, (-1, 4))  # (B, G, 4, G, 4, 3)
    if layout == "cell by cell":
        return cells.permute(0, 1, 3, 2, 4, 5).contiguous().permute(0, 1, 3, 2, 4, 5)
    if layout == "cells mirrored along the diagonal":
        return cells.permute(3, 1, 4, 2, 0, 5).contiguous().permute(4, 1, 3, 0, 2, 5)
    if layout.startswith("cells with margins"):
        below, beside = (2 if layout.endswith(where) else 0 for where in ("below", "beside"))
        frame = torch.full((B, H // 4, 4 + below, W // 4, 4 + beside, 3), 255, dtype=torch.uint8, device=DEVICE)
        frame[:, :, below:, :, beside:] = cells
        return frame[:, :, below:, :, beside:]
    return cells


LAYOUTS = [
    *("window", "planes", "every third pixel of planes", "channels first", "every second image", "wider pixels"),
    *("cells side by side", "cell by cell", "cells mirrored along the diagonal"),
    *("cells with margins below", "cells with margins beside"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("patch", [4, 2, 16])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize(("pad", "pad_mode"), [(0, "zero"), (3, "zero"), (3, "reflect")])
def test_any_strides(layout: str, patch: int, flips: bool, pad: int, pad_mode: str) -> None:
    images = random_pixels(2, 16, 16, 3).to(DEVICE)
    pixels = laid_out(layout, images)
    np.testing.assert_array_equal(images_of(pixels), images.cpu().numpy())
    chosen = choices(2, 16, 16, patch, pad)
    if not flips:
        del chosen["flip_B"]
    check(pixels, patch=patch, pad=pad, pad_mode=pad_mode, **chosen)


def test_choices_of_any_strides() -> None:
    chosen = {name: value.repeat_interleave(2, dim=0)[::2] for name, value in choices(3, 16, 16, 4, 3).items()}
    chosen["places_BN"] = chosen["places_BN"].t().contiguous().t()
    assert not any(value.is_contiguous() for value in chosen.values())
    check(random_pixels(3, 16, 16, 3).to(DEVICE), patch=4, pad=3, **chosen)


def test_means_and_deviations_of_any_strides() -> None:
    mean, std = (value.to(DEVICE).repeat_interleave(2)[::2] for value in (MEAN, STD))
    assert mean.stride() == std.stride() == (2,)
    check(random_pixels(2, 8, 8, 3).to(DEVICE), patch=4, mean=mean, std=std)


@pytest.mark.parametrize("pad", [0, 3])
def test_resident_rows_in_any_order_and_more_than_once(pad: int) -> None:
    rows_B = torch.tensor([4, 0, 3, 3, 4, 0, 2])
    resident = random_pixels(5, 12, 8, 3).to(DEVICE)
    check(resident, patch=4, rows_B=rows_B, pad=pad, **choices(7, 12, 8, 4, pad))
    check(laid_out("channels first", resident), patch=4, rows_B=rows_B)


@pytest.mark.parametrize("B", [5, 3, 9])
@pytest.mark.parametrize("patch", [8, 6])
def test_programs_of_several_blocks(monkeypatch: pytest.MonkeyPatch, B: int, patch: int) -> None:
    """As on batches too large for a test: a program takes several blocks, the last one some that do not exist."""
    monkeypatch.setattr(launcher, "_PROGRAMS", 1)
    side = 4 * patch
    check(random_pixels(B, side, side, 3).to(DEVICE), patch=patch, pad=2, **choices(B, side, side, patch, 2))


@pytest.mark.parametrize("patch", [8, 7])
def test_every_pixel_to_the_bit(patch: int) -> None:
    """Values that are the pixels' own numbers: nothing is off by even one."""
    side, pad = 2 * patch, 2
    pixels = random_pixels(3, side, side, 3).to(DEVICE)
    unit: dict[str, Any] = {"mean": torch.zeros(3), "std": torch.full((3,), 1 / 255)}
    settings = {"patch": patch, "pad": pad} | choices(3, side, side, patch, pad)
    actual = check(pixels, **settings, **unit)
    expected = brute_force(pixels, **settings, dtype=torch.float32, mean=torch.zeros(3), std=torch.ones(3)) * 255
    assert torch.equal(actual.double().round(), expected.round())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["images", "grid", "rows"])
def test_an_empty_batch(kind: str) -> None:
    shape = {"images": (0, 8, 8, 3), "grid": (0, 2, 4, 2, 4, 3), "rows": (5, 8, 8, 3)}[kind]
    rows_B = torch.zeros(0, dtype=torch.int64, device=DEVICE) if kind == "rows" else None
    pixels = torch.zeros(shape, dtype=torch.uint8, device=DEVICE)
    mean, std = MEAN.to(DEVICE), STD.to(DEVICE)
    with using("on"):
        for given in ({name: value.to(DEVICE) for name, value in choices(0, 8, 8, 4, 2).items()}, {}):
            out = patch_batch(pixels, patch=4, mean=mean, std=std, dtype=torch.bfloat16, rows_B=rows_B, pad=2, **given)
            assert (out.shape, out.dtype) == ((0, 3, 4, 4), torch.bfloat16)
