"""Runs for the decoder of libjpeg-turbo, and for DALI's, which does the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.plain_photos import DRAWS
from fastselfie.pipelines.decoder import Decoder
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.turbo_decoder import TurboDecoder
from fastselfie.pipelines.view import View
from tests.photographs import CPU, images_of, jpeg, picture

MIN_AREA = 0.08
GOOD = jpeg(picture(60, 50))


def resized(size: int) -> View:
    return View(size=size, crop="resized", min_area=MIN_AREA, flip=True)


def encoded(files: Sequence[bytes], view: View, seed: int = 0) -> Encoded:
    generator = np.random.default_rng(seed)
    data = [np.frombuffer(file, dtype=np.uint8) for file in files]
    if view.crop == "pad":
        return Encoded(data=data)
    draws = generator.random((len(files), DRAWS))
    return Encoded(data=data, draws=draws, flip=generator.integers(0, 2, len(files), dtype=np.int32))


def turbo(view: View, *, batch: int = 100, threads: int = 2, depth: int = 1) -> TurboDecoder:
    return TurboDecoder(view, batch=batch, threads=threads, device=CPU, depth=depth)


def views(decoder: TurboDecoder | Decoder, run: Encoded) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None]:
    decoder.schedule(run)
    pixels, windows = decoder.take()
    return images_of(pixels), None if windows is None else windows.numpy()
