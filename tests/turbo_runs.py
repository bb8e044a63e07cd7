"""Runs for the decoder of libjpeg-turbo, and for DALI's, which does the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.plain_photos import DRAWS
from fastselfie.pipelines.decoder import DaliDecoder
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
    return TurboDecoder(view, batch=batch, threads=threads, depth=depth)


def dali(view: View, *, batch: int = 100, threads: int = 2) -> DaliDecoder:
    return DaliDecoder(view, batch=batch, threads=threads, device=CPU)


def dali_windows(
    images: Sequence[NDArray[Any]], draws: NDArray[np.float64] | None, min_area: float, device_id: int | None = None
) -> NDArray[np.int32]:
    """As `random_windows`, by the part of DALI's graph that makes its windows.

    Args:
        images: encoded, uint8 (size,) each, or their shapes, fp64 (3,): rows, columns, channels.
        draws, min_area: as the graph has them. device_id: of the GPU that the graph is for.
    """
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    from fastselfie.pipelines.window import random_window

    graph = Pipeline(batch_size=len(images), num_threads=1, device_id=device_id, prefetch_queue_depth=1)
    with graph:
        if images[0].dtype == np.uint8:
            encoded = fn.external_source(name="images", dtype=types.UINT8, ndim=1)
            shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT64)
        else:
            shape = fn.external_source(name="images", dtype=types.FLOAT64, ndim=1)
        drawn = fn.external_source(name="draws", dtype=types.FLOAT64, ndim=1)
        graph.set_outputs(fn.cat(*random_window(shape, drawn, min_area)))
    graph.build()
    assert draws is not None
    (windows,) = graph.run(images=list(images), draws=draws)
    return np.array(windows.as_tensor())


def views(decoder: TurboDecoder | DaliDecoder, run: Encoded) -> NDArray[np.uint8]:
    decoder.schedule(run)
    return images_of(decoder.take())
