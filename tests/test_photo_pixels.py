"""Pixels of views of files: the DALI graph against Pillow, on photographs and on every format that may come."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.plain_photos import DRAWS, plain_view, random_window, training_view
from fastselfie.pipelines.decoder import DaliDecoder
from fastselfie.pipelines.gpu_decoding import BY_DEFAULT, GpuDecoding
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.view import View
from tests.photographs import CPU, images_of, jpeg, picture, png, side_lengths

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

# Levels of 255 between DALI and Pillow. Both decode alike, also a part of a JPEG alone; Pillow rounds to uint8 between
# the resize's two passes and DALI does not.
MAX = 1
MEAN = 0.25  # of one image
# Where an image shrinks, the filter reaches beyond the window's edge: DALI repeats the outermost pixels there, Pillow
# leaves them out and scales up the rest. That shows in the outermost pixel of a view alone (in a plain view it is cut
# off), and the more the image shrinks. `test_the_edge_is_repeated` has the exact truth.
EDGE_MAX, EDGE_MEAN = 40, 4.0

SIZES = [224, 32]
MIN_AREA = 0.08
PICTURE = picture(180, 260)


def png16(grey: bool) -> bytes:
    """16 bits a channel, which Pillow cannot write in colour; the low byte is such that to round is to cut it off."""
    image = PICTURE.astype(np.uint16)
    image = image * 257 + np.minimum(np.random.default_rng(0).integers(0, 100, image.shape), 255 - image)
    rows = image.astype(">u2")[:, :, : 1 if grey else 3]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, 0 if grey else 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_alpha() -> bytes:
    """Half of it almost transparent; the colours below count all the same."""
    alpha = np.where(np.arange(PICTURE.shape[1]) > 130, 255, 40).astype(np.uint8)
    image = np.dstack([PICTURE, np.broadcast_to(alpha, PICTURE.shape[:2])])
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "4:4:4": lambda: jpeg(PICTURE),
    "4:2:2": lambda: jpeg(PICTURE, subsampling=1),
    "4:2:0": lambda: jpeg(PICTURE, subsampling=2),
    "progressive": lambda: jpeg(PICTURE, subsampling=2, progressive=True),
    "grey jpeg": lambda: jpeg(PICTURE, mode="L"),
    "cmyk jpeg": lambda: jpeg(PICTURE, mode="CMYK"),
    "png": lambda: png(PICTURE),
    "png with alpha": with_alpha,
    "grey png": lambda: png(PICTURE, mode="L"),
    "grey png with alpha": lambda: png(PICTURE, mode="LA"),
    "png with a palette": lambda: png(PICTURE, mode="P"),
    "black and white png": lambda: png(PICTURE, mode="1"),
    "16 bits": lambda: png16(grey=False),
    "16 bits of grey": lambda: png16(grey=True),
    "turned png": lambda: png(PICTURE, orientation=6),
}
ORIENTATIONS = {f"orientation {value}": value for value in range(1, 9)}


def dali_view(
    data: bytes, view: View, draws: NDArray[np.float64] | None = None, flip: int = 0, gpu: GpuDecoding = BY_DEFAULT
) -> NDArray[np.uint8]:
    """One image through the graph of ``view``: uint8 (H, H, 3)."""
    decoder = DaliDecoder(view, batch=1, threads=1, device=CPU, gpu=gpu)
    flips = None if draws is None else np.array([flip], dtype=np.int32)
    contents = [np.frombuffer(data, dtype=np.uint8)]
    decoder.schedule(Encoded(data=contents, draws=None if draws is None else draws[None], flip=flips))
    image: NDArray[np.uint8] = images_of(decoder.take())[0].copy()
    return image


def compare(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], *, edge: bool) -> None:
    """Within the tolerances above; ``edge`` says whether the outermost pixels are the image's or window's own."""
    assert ours.shape == theirs.shape
    assert ours.std() > 5, "of a flat image any would do"
    apart = np.abs(ours.astype(np.int16) - theirs)
    inner = apart[1:-1, 1:-1] if edge else apart
    assert inner.max() <= MAX
    assert inner.mean() <= MEAN
    if edge:
        ring = np.concatenate([apart[0], apart[-1], apart[:, 0], apart[:, -1]])
        assert ring.max() <= EDGE_MAX
        assert ring.mean() <= EDGE_MEAN


def check(data: bytes, size: int, seed: int) -> None:
    """A training view and the plain view of one file."""
    draws, flip = np.random.default_rng(seed).random(DRAWS), seed % 2
    view = View(size=size, crop="resized", min_area=MIN_AREA, flip=True)
    compare(
        dali_view(data, view, draws, flip), training_view(data, size, draws.tolist(), MIN_AREA, bool(flip)), edge=True
    )
    compare(dali_view(data, view.plain()), plain_view(data, size), edge=False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, size: int) -> None:
    for seed in range(3):
        check(FORMATS[name](), size, seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_orientations(name: str, subsampling: int, size: int) -> None:
    """The window is one of the turned image, also where only a part of the file is decoded."""
    check(jpeg(PICTURE, orientation=ORIENTATIONS[name], subsampling=subsampling), size, seed=ORIENTATIONS[name])


@pytest.mark.parametrize("name", [*FORMATS, *ORIENTATIONS])
def test_cut_out_of_the_whole_image_it_is_the_same(name: str) -> None:
    """The way of a GPU that cannot decode regions, gone on the CPU."""
    data = jpeg(PICTURE, orientation=ORIENTATIONS[name], subsampling=2) if name in ORIENTATIONS else FORMATS[name]()
    view = View(size=96, crop="resized", min_area=MIN_AREA, flip=True)
    for seed in range(2):
        draws = np.random.default_rng(seed).random(DRAWS)
        whole = dali_view(data, view, draws, seed, GpuDecoding(regions=False))
        assert np.array_equal(whole, dali_view(data, view, draws, seed))


@pytest.mark.parametrize("size", SIZES)
def test_photographs(size: int) -> None:
    if "FASTSELFIE_DATA" not in os.environ:
        pytest.skip("FASTSELFIE_DATA names no folder with imagenet_sample/")
    files = sorted((Path(os.environ["FASTSELFIE_DATA"]) / "imagenet_sample" / "train").rglob("*.JPEG"))
    assert len(files) > 100
    for seed, path in enumerate(files[:: len(files) // 40]):
        check(path.read_bytes(), size, seed)


@pytest.mark.parametrize("shape", [(32, 32), (180, 97), (1200, 30), (37, 500)])
@pytest.mark.parametrize("size", SIZES)
def test_plain_views_of_other_shapes(shape: tuple[int, int], size: int) -> None:
    data = png(picture(*shape))
    compare(dali_view(data, View(size=size)), plain_view(data, size), edge=False)


def triangle(pixels: int, size: int) -> NDArray[np.float64]:
    """The filter as a matrix (size, pixels): a triangle as wide as an output pixel, edges repeated."""
    scale, matrix = pixels / size, np.zeros((size, pixels))
    reach = max(scale, 1.0)
    for out in range(size):
        centre = (out + 0.5) * scale
        places = np.arange(int(centre - reach) - 2, int(centre + reach) + 3)
        weights = np.maximum(0.0, 1 - np.abs(places + 0.5 - centre) / reach)
        np.add.at(matrix[out], places.clip(0, pixels - 1), weights / weights.sum())
    return matrix


@pytest.mark.parametrize("seed", range(4))
def test_the_edge_is_repeated(seed: int) -> None:
    """Every pixel, the outermost too, is the fp64 sum rounded once."""
    draws, data = np.random.default_rng(seed).random(DRAWS), png(PICTURE)
    row, column, height, width = random_window(*side_lengths(PICTURE), draws.tolist(), MIN_AREA)
    window = PICTURE[row : row + height, column : column + width].astype(np.float64)
    for size in SIZES:
        exact = np.einsum("ai,ijc,bj->abc", triangle(height, size), window, triangle(width, size), optimize=True)
        ours = dali_view(data, View(size=size, crop="resized", min_area=MIN_AREA), draws)
        assert np.abs(ours - exact).max() < 0.51
