"""Photographs that tests make themselves, in every format that a folder may hold, and pipelines over them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastselfie.pipelines.decoders import DecoderName
from fastselfie.pipelines.file_pipeline import FilePipeline
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.names import Names
from fastselfie.pipelines.opening import open_pipeline
from fastselfie.pipelines.source import EncodedImages, Files
from fastselfie.pipelines.view import View

CPU = torch.device("cpu")
ORIENTATION = 0x0112  # EXIF's tag


def picture(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth gradients with two discs and a bar: uint8 (rows, columns, 3). No mirror image of it is like it."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns] / np.array([rows, columns]).reshape(2, 1, 1)
    image = np.stack([60 + 150 * x, 40 + 160 * y, 210 - 90 * x - 80 * y], axis=2)
    for _ in range(2):
        at_y, at_x = generator.uniform(0.1, 0.45, 2)
        image[(y - at_y) ** 2 + (x - at_x) ** 2 < 0.02] = generator.uniform(0, 255, 3)
    image[(y > 0.7) & (y < 0.8) & (x > 0.5)] = generator.uniform(0, 255, 3)
    return image.round().astype(np.uint8)


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Every pixel at random: uint8 (rows, columns, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def jpeg(image: NDArray[np.uint8], **options: Any) -> bytes:
    """``image`` as Pillow's JPEG of quality 95; ``mode`` converts it before, ``orientation`` notes EXIF's."""
    return _saved(image, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def png(image: NDArray[np.uint8], **options: Any) -> bytes:
    """``image`` as Pillow's PNG; ``mode`` converts it before."""
    return _saved(image, "PNG", **options)


def _saved(
    image: NDArray[np.uint8], format: str, mode: str = "RGB", orientation: int | None = None, **options: Any
) -> bytes:
    picture, file = Image.fromarray(image).convert(mode), io.BytesIO()
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    picture.save(file, format, **options)
    return file.getvalue()


def undecodable(image: NDArray[np.uint8]) -> bytes:
    """A JPEG whose header and ends are right and whose Huffman table is not: no decoder takes it."""
    data = jpeg(image)
    table = data.index(b"\xff\xc4") + 5
    return data[:table] + b"\xff" * 16 + data[table + 16 :]


def side_lengths(image: NDArray[np.uint8]) -> tuple[int, int]:
    """Rows and columns."""
    return image.shape[0], image.shape[1]


def write(folder: Path, images: Iterable[tuple[str, bytes]], labels: Sequence[int] | None = None) -> Files:
    """Files of those names and contents in ``folder``, in that order."""
    names = []
    for name, data in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        names.append(name)
    labels_S = np.array(labels if labels is not None else [0] * len(names), dtype=np.int64)
    return Files(root=folder, names=Names.of(names), labels_S=labels_S)


def flat_folder(folder: Path, count: int) -> Path:
    """Small JPEG files without labels, no two of one size."""
    write(folder, [(f"{index:02}.jpg", jpeg(picture(48, 40 + index, index))) for index in range(count)])
    return folder


def images_of(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """A batch's (B, G, P, G, P, 3) as images (B, H, H, 3)."""
    side = pixels.shape[1] * pixels.shape[2]
    return pixels.reshape(len(pixels), side, side, 3).cpu().numpy()


def pipeline(
    files: EncodedImages, view: View, *, batch: int, seed: int = 3, threads: int = 1, prefetch: int = 1,
    rows: torch.Tensor | None = None, device: torch.device = CPU, decoder: DecoderName = "dali",
) -> FilePipeline:  # fmt: skip
    """The program's own pipeline over ``files``."""
    loading = Loading(threads=threads, prefetch=prefetch, batch=batch, decoder=decoder)
    opened = open_pipeline(files, view=view, seed=seed, device=device, loading=loading, rows=rows)
    assert isinstance(opened, FilePipeline)
    return opened
