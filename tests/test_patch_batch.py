"""`patch_batch` against NumPy: pad, crop, mirror and cut one image at a time, normalised in fp64."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastselfie.kernels import patch_batch

PadMode = Literal["zero", "reflect"]
MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
FORMAT: dict[str, Any] = {"mean": MEAN, "std": STD, "dtype": torch.float32}
SHAPES = [(32, 8, 5), (224, 32, 2), (15, 5, 4), (12, 4, 3), (16, 16, 3)]  # pixels a side, patch, images


def brute_force(
    images: NDArray[np.uint8], patch: int, *, corners: NDArray[np.int64] | None = None, pad: int = 0,
    flips: NDArray[np.bool_] | None = None, pad_mode: PadMode = "zero", places: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:  # fmt: skip
    """(B * N, 3, P, P) in fp64."""
    mean, std = MEAN.double().numpy(), STD.double().numpy()
    side, grid, out = images.shape[1], images.shape[1] // patch, []
    for b, image in enumerate(images):
        margin = ((pad, pad), (pad, pad), (0, 0))
        padded = np.pad(image, margin, mode="constant") if pad_mode == "zero" else np.pad(image, margin, mode="reflect")
        y, x = (pad, pad) if corners is None else corners[b]
        view = padded[y : y + side, x : x + side]
        if flips is not None and flips[b]:
            view = view[:, ::-1]
        for place in range(grid * grid) if places is None else places[b]:
            row, column = divmod(int(place), grid)
            cut = view[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            out.append(((cut.astype(np.float64) / 255 - mean) / std).transpose(2, 0, 1))
    return np.stack(out)


def random_images(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def random_choices(count: int, patches: int, pad: int) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    flips = np.arange(count) % 2 == 0  # both kinds, whatever the generator
    places = np.stack([rng.permutation(patches) for _ in range(count)])
    return {"corners": rng.integers(0, 2 * pad + 1, (count, 2)), "flips": flips, "places": places}


def tensors(choices: dict[str, Any]) -> dict[str, Any]:
    """The choices as `patch_batch` names them."""
    names = {"corners": "corner_B2", "flips": "flip_B", "places": "places_BN"}
    return {names[name]: torch.from_numpy(value) for name, value in choices.items()}


def assert_patches(actual: Tensor, expected: NDArray[np.float64], patch: int) -> None:
    assert actual.shape == (len(expected), 3, patch, patch)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("side", "patch", "count"), SHAPES)
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
@pytest.mark.parametrize("pad", [1, 4])
def test_everything_at_once(side: int, patch: int, count: int, pad_mode: PadMode, pad: int) -> None:
    images, choices = random_images(count, side), random_choices(count, (side // patch) ** 2, pad)
    actual = patch_batch(
        torch.from_numpy(images), patch=patch, pad=pad, pad_mode=pad_mode, **tensors(choices), **FORMAT
    )
    assert_patches(actual, brute_force(images, patch, pad=pad, pad_mode=pad_mode, **choices), patch)


@pytest.mark.parametrize("name", ["corners", "flips", "places"])
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_each_choice_alone(name: str, pad_mode: PadMode) -> None:
    images = random_images(6, 32)
    choice = {name: random_choices(6, 16, 4)[name]}
    actual = patch_batch(torch.from_numpy(images), patch=8, pad=4, pad_mode=pad_mode, **tensors(choice), **FORMAT)
    assert_patches(actual, brute_force(images, 8, pad=4, pad_mode=pad_mode, **choice), 8)


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_every_corner_even_at_the_widest_padding(pad_mode: PadMode) -> None:
    side = 6
    pad = side - 1
    corners = np.stack(np.meshgrid(np.arange(2 * pad + 1), np.arange(2 * pad + 1)), axis=-1).reshape(-1, 2)
    images = random_images(len(corners), side)
    for flips in (np.zeros(len(corners), bool), np.ones(len(corners), bool)):
        choices: dict[str, Any] = {"corners": corners, "flips": flips}
        crop: dict[str, Any] = {"pad": pad, "pad_mode": pad_mode}
        actual = patch_batch(torch.from_numpy(images), patch=3, **crop, **tensors(choices), **FORMAT)
        assert_patches(actual, brute_force(images, 3, **crop, **choices), 3)


@pytest.mark.parametrize(("side", "patch", "count"), SHAPES)
def test_images_as_they_are(side: int, patch: int, count: int) -> None:
    images = random_images(count, side)
    assert_patches(patch_batch(torch.from_numpy(images), patch=patch, **FORMAT), brute_force(images, patch), patch)


@pytest.mark.parametrize(("side", "patch"), [(32, 8), (15, 5)])
@pytest.mark.parametrize("layout", ["contiguous", "window", "planes", "every second image"])
def test_grid_views_of_any_strides(side: int, patch: int, layout: str) -> None:
    images, choices = random_images(4, side), random_choices(4, (side // patch) ** 2, 2)
    pixels = torch.from_numpy(images)
    if layout == "window":  # a region of a larger frame, as a decoder might leave it
        frame = torch.full((4, side + 5, side + 3, 3), 255, dtype=torch.uint8)
        frame[:, 2 : 2 + side, 3:] = pixels
        pixels = frame[:, 2 : 2 + side, 3:]
    elif layout == "planes":
        pixels = pixels.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    elif layout == "every second image":
        pixels = pixels.repeat_interleave(2, dim=0)[::2]
    view = pixels.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
    assert view.shape == (4, side // patch, patch, side // patch, patch, 3)
    assert view.is_contiguous() == (layout == "contiguous")
    expected = brute_force(images, patch, pad=2, **choices)
    for given in (view, pixels):
        assert_patches(patch_batch(given, patch=patch, pad=2, **tensors(choices), **FORMAT), expected, patch)


def test_resident_rows_in_any_order_and_more_than_once() -> None:
    images, rows = random_images(9, 32), np.array([8, 0, 3, 3, 5, 0, 8])
    choices = random_choices(len(rows), 16, 4)
    resident, rows_B = torch.from_numpy(images), torch.from_numpy(rows)
    actual = patch_batch(resident, patch=8, rows_B=rows_B, pad=4, **tensors(choices), **FORMAT)
    assert_patches(actual, brute_force(images[rows], 8, pad=4, **choices), 8)
    assert torch.equal(actual, patch_batch(resident[rows_B], patch=8, pad=4, **tensors(choices), **FORMAT))


@pytest.mark.parametrize("layout", ["contiguous", "channels first"])
def test_a_pixel_is_found_by_one_index(layout: str) -> None:
    """By three, of image, row and column, a CPU takes four times as long. Of resident images none but the batch's are
    copied, however they lie."""
    images, rows, choices = random_images(50, 32), np.array([8, 49, 3]), random_choices(3, 16, 4)
    pixels, met = torch.from_numpy(images), list[tuple[Any, int]]()
    if layout == "channels first":
        pixels = pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    class Met(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = operator(*args, **(kwargs or {}))
            if made.dtype == torch.uint8 and made.untyped_storage().data_ptr() != pixels.untyped_storage().data_ptr():
                met.append((operator.overloadpacket, made.numel()))
            return made

    with Met():
        actual = patch_batch(pixels, patch=8, rows_B=torch.from_numpy(rows), pad=4, **tensors(choices), **FORMAT)
    assert_patches(actual, brute_force(images[rows], 8, pad=4, **choices), 8)
    assert torch.ops.aten.index_select in [operator for operator, _ in met]
    assert max(numbers for _, numbers in met) == 3 * 32 * 32 * 3


def test_black_padding_is_normalised_like_black_pixels() -> None:
    white = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    out = patch_batch(white, patch=8, pad=4, corner_B2=torch.tensor([[0, 8]]), **FORMAT)[0]
    black, full = -MEAN / STD, (1 - MEAN) / STD
    np.testing.assert_allclose(out[:, :4].numpy(), black[:, None, None].expand(3, 4, 8), atol=1e-6)
    np.testing.assert_allclose(out[:, :, 4:].numpy(), black[:, None, None].expand(3, 8, 4), atol=1e-6)
    np.testing.assert_allclose(out[:, 4:, :4].numpy(), full[:, None, None].expand(3, 4, 4), atol=1e-6)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_narrow_types_are_fp32_rounded_once(dtype: torch.dtype, bits: int) -> None:
    images = random_images(3, 32)
    narrow = patch_batch(torch.from_numpy(images), patch=8, mean=MEAN, std=STD, dtype=dtype)
    assert narrow.dtype == dtype
    assert narrow.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(narrow.double().numpy(), brute_force(images, 8), rtol=2.0**-bits, atol=1e-6)
    assert torch.equal(narrow, patch_batch(torch.from_numpy(images), patch=8, **FORMAT).to(dtype))


@pytest.mark.parametrize("kind", ["images", "grid", "rows"])
def test_an_empty_batch(kind: str) -> None:
    none = {name: value[:0] for name, value in random_choices(1, 16, 4).items()}
    rows_B = torch.zeros(0, dtype=torch.int64) if kind == "rows" else None
    shape = {"images": (0, 32, 32, 3), "grid": (0, 4, 8, 4, 8, 3), "rows": (5, 32, 32, 3)}[kind]
    pixels = torch.zeros(shape, dtype=torch.uint8)
    for given in (tensors(none), {}):
        assert patch_batch(pixels, patch=8, rows_B=rows_B, pad=4, **given, **FORMAT).shape == (0, 3, 8, 8)


def test_inputs_stay_as_they_were() -> None:
    images, choices = random_images(3, 32), tensors(random_choices(3, 16, 4))
    pixels, before = torch.from_numpy(images.copy()), {name: value.clone() for name, value in choices.items()}
    patch_batch(pixels, patch=8, pad=4, **choices, **FORMAT)
    np.testing.assert_array_equal(pixels.numpy(), images)
    assert all(torch.equal(choices[name], before[name]) for name in before)
