"""Views of files: which window, which mirror image, which mask; 5,000 samples of the pipeline against plain loops."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.plain_photos import DRAWS, Window, central_window, decode, random_window, training_view
from fastselfie.config import PretrainConfig
from fastselfie.pipelines.decoder import DaliDecoder
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.source import Files, ResidentSplit
from fastselfie.pipelines.view import Batch, View
from fastselfie.pretext.selfie import SelfieTask
from fastselfie.pretext.task import PixelFormat
from fastselfie.randomness import Purpose, epoch_order, integers, permutations, uniform
from tests.photographs import CPU, images_of, jpeg, noise, picture, pipeline, png, side_lengths, write
from tests.turbo_runs import dali_windows

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

SEED, SIZE, MIN_AREA, BATCH, SAMPLES = 7, 32, 0.08, 250, 5_000
RESIZED = View(size=SIZE, grid=4, crop="resized", min_area=MIN_AREA, flip=True)
PADDED = View(size=SIZE, grid=4, pad=4, flip=True)
SHAPES = [
    (8, 8),
    (1, 1),
    (1, 60),
    (60, 1),
    (3, 200),
    (200, 4),
    (5, 90),
    (90, 7),
    (40, 30),
    (30, 41),
    (64, 64),
    (150, 20),
]
RAW: dict[str, Any] = {"mean": torch.zeros(3), "std": torch.full((3,), 1 / 255), "dtype": torch.float32}  # 0 to 255


def mixed_files(folder: Path, count: int = 300) -> Files:
    """Noise, so that no window is its own mirror image, of many shapes; some with 150 kB before the image."""
    generator, images = np.random.default_rng(0), []
    for index in range(count):
        rows, columns = SHAPES[index] if index < len(SHAPES) else generator.integers(6, 120, 2).tolist()
        image = noise(rows, columns, seed=index)
        heavy = {"icc_profile": bytes(150_000)} if index % 50 == 13 else {}
        data = png(image) if index % 3 == 0 else jpeg(image, subsampling=index % 3, **heavy)
        images.append((f"{index}.{'png' if index % 3 == 0 else 'jpg'}", data))
    return write(folder, images)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the pipeline made of the stream's first `SAMPLES` entries; windows as DALI has them of what it was given."""

    files: Files
    batches: list[Batch]
    windows: list[Window]

    def pixels(self) -> NDArray[np.uint8]:
        return np.concatenate([images_of(batch.pixels) for batch in self.batches])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    files, schedule = mixed_files(tmp_path_factory.mktemp("mixed")), DaliDecoder.schedule
    windows: list[Window] = []

    def recording(decoder: DaliDecoder, encoded: Encoded) -> None:
        windows_B4 = dali_windows(encoded.data, encoded.draws, MIN_AREA)
        windows.extend((row, column, height, width) for row, column, height, width in windows_B4.tolist())
        schedule(decoder, encoded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DaliDecoder, "schedule", recording)
        source = pipeline(files, RESIZED, batch=BATCH, seed=SEED, prefetch=2)
        requests = [(start, start + BATCH) for start in range(0, SAMPLES, BATCH)]
        source.announce(requests)
        batches = [source.batch(*request) for request in requests]
    return Seen(files=files, batches=batches, windows=windows)


@pytest.fixture(scope="module")
def stream(seen: Seen) -> list[tuple[int, int]]:
    """(epoch, sample) of every entry: epochs laid end to end."""
    size = len(seen.files)
    epochs = -(-SAMPLES // size)
    entries = [(epoch, sample) for epoch in range(epochs) for sample in epoch_order(SEED, epoch, size).tolist()]
    return entries[:SAMPLES]


def keys(stream: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    epochs, samples = zip(*stream, strict=True)
    return torch.tensor(epochs), torch.tensor(samples)


def test_the_batches_are_of_the_stream(seen: Seen, stream: list[tuple[int, int]]) -> None:
    for index, batch in enumerate(seen.batches):
        entries = list(zip(batch.epoch_B.tolist(), batch.sample_B.tolist(), strict=True))
        assert entries == stream[index * BATCH : (index + 1) * BATCH]
        assert (batch.corner_B2, batch.flip_B, batch.rows_B) == (None, None, None)  # all of it was done in the graph


def test_windows(seen: Seen, stream: list[tuple[int, int]]) -> None:
    shapes = [side_lengths(decode(seen.files.path(index).read_bytes())) for index in range(len(seen.files))]
    draws = uniform(SEED, Purpose.CROP, *keys(stream), DRAWS).tolist()
    expected = [random_window(*shapes[sample], draw, MIN_AREA) for (_, sample), draw in zip(stream, draws, strict=True)]
    assert len(seen.windows) == SAMPLES
    assert seen.windows == expected
    fallen_back = sum(
        window == central_window(*shapes[sample]) and min(shapes[sample]) * 10 < max(shapes[sample])
        for (_, sample), window in zip(stream, expected, strict=True)
    )
    assert fallen_back > 50
    assert len(set(expected)) > SAMPLES // 2


def test_flips_and_pixels(seen: Seen, stream: list[tuple[int, int]]) -> None:
    """Each view is the plain one with the flip that was drawn, and not with the other. (The outermost pixels are left
    out: see test_photo_pixels.)"""
    epoch_B, sample_B = keys(stream)
    draws = uniform(SEED, Purpose.CROP, epoch_B, sample_B, DRAWS).tolist()
    flips = integers(SEED, Purpose.FLIP, epoch_B, sample_B, 1, 2)[:, 0].bool().tolist()
    contents = [seen.files.path(index).read_bytes() for index in range(len(seen.files))]
    told_apart = 0
    for pixels, (_, sample), draw, flip, window in zip(seen.pixels(), stream, draws, flips, seen.windows, strict=True):
        view = training_view(contents[sample], SIZE, draw, MIN_AREA, flip)
        straight, mirrored = (_difference(pixels, other)[1:-1, 1:-1].max() for other in (view, view[:, ::-1]))
        assert straight <= 1, (seen.files.names[sample], window)
        told_apart += mirrored > 1
        assert mirrored > 1 or window[3] == 1
    assert told_apart > 0.95 * SAMPLES
    assert 0.47 < sum(flips) / SAMPLES < 0.53


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.abs(a.astype(np.int16) - b.astype(np.int16))


def test_masks(seen: Seen, stream: list[tuple[int, int]]) -> None:
    """The places that the network is shown are those drawn for the entries of the stream."""
    config = PretrainConfig(recipe="test", seed=SEED, crop="resized", width=1 / 16, heads=4)
    shown: list[Tensor] = []

    def forward(patches: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        shown.append(places_BN)
        return torch.zeros(()), torch.zeros(())

    task = SelfieTask(config, None, PixelFormat(**RAW))  # type: ignore[arg-type]
    for batch in seen.batches:
        task.loss(forward, batch)
    assert torch.equal(torch.cat(shown), permutations(SEED, Purpose.MASK, *keys(stream), 16))


def test_a_batch_is_laid_out_in_patches(tmp_path: Path) -> None:
    """(B, G, P, G, P, 3), and merged again the image: patch (i, j) starts at pixel (i * P, j * P)."""
    images = [picture(56, 56, seed) for seed in range(3)]
    files = write(tmp_path, [(f"{index}.png", png(image)) for index, image in enumerate(images)])
    whole, gridded = (pipeline(files, View(size=49, grid=grid), batch=3) for grid in (1, 7))
    expected = next(whole.in_order([(0, 3)])).pixels
    pixels = next(gridded.in_order([(0, 3)])).pixels
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 7, 7, 7, 7, 3))
    assert expected.shape == (3, 1, 49, 1, 49, 3)
    for b, i, j in ((0, 0, 0), (1, 2, 5), (2, 6, 1)):
        patch = expected[b, 0, 7 * i : 7 * i + 7, 0, 7 * j : 7 * j + 7]
        assert torch.equal(pixels[b, i, :, j], patch)
    assert torch.equal(pixels.reshape(3, 49, 49, 3), expected.reshape(3, 49, 49, 3))
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize("change", [{}, {"pad_mode": "reflect"}, {"pad": 0}, {"flip": False}])
def test_padded_crops_are_those_of_images_in_memory(change: dict[str, Any], tmp_path: Path) -> None:
    generator, view = np.random.default_rng(1), dataclasses.replace(PADDED, **change)
    shapes = generator.integers(20, 90, (23, 2)).tolist()
    files = write(
        tmp_path,
        [(f"{i:02}.png", png(noise(rows, columns, seed=i))) for i, (rows, columns) in enumerate(shapes)],
        range(23),
    )
    plain = images_of(next(pipeline(files, view.plain(), batch=23).in_order([(0, 23)])).pixels)
    resident = ResidentPipeline(
        ResidentSplit(images_SHW3=plain, labels_S=files.labels_S), view=view, seed=SEED, device=CPU
    ).batch(10, 60)
    batch = pipeline(files, view, batch=50, seed=SEED).batch(10, 60)
    patches, expected = (b.patches(patch=8, **RAW) for b in (batch, resident))
    assert torch.equal(patches, expected)
    assert torch.equal(batch.labels_B, resident.labels_B)
    assert torch.equal(batch.sample_B, batch.labels_B)
