"""DALI as its own example for ResNet-50 uses it: a decoder that crops at random, a resize, a flip; on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def dali_example(
    data: Sequence[bytes], *, size: int, min_area: float, batch: int, batches: int, threads: int, prefetch: int
) -> Callable[[], object]:
    """One call loads a round's batches. The pipeline is given no more than those, so it does not work ahead of a round.

    Args:
        prefetch: batches that it works ahead within a round.
    """
    from nvidia.dali import fn, pipeline_def, types  # heavy, and only where it is measured

    generator = np.random.default_rng(0)
    encoded = [np.frombuffer(one, dtype=np.uint8) for one in data]

    class Round:
        """DALI goes through it anew after each reset."""

        def __iter__(self) -> Iterator[list[NDArray[np.uint8]]]:
            for _ in range(batches):
                yield [encoded[index] for index in generator.integers(0, len(encoded), batch)]

    @pipeline_def  # type: ignore[untyped-decorator]
    def training() -> Any:
        images = fn.external_source(source=Round(), cycle="raise", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image_random_crop(
            images, device="cpu", output_type=types.RGB, random_aspect_ratio=[3 / 4, 4 / 3],
            random_area=[min_area, 1.0], num_attempts=100,
        )  # fmt: skip
        images = fn.resize(images, resize_x=size, resize_y=size, interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5))

    pipeline = training(batch_size=batch, num_threads=threads, device_id=None, seed=0, prefetch_queue_depth=prefetch)
    pipeline.build()

    def load() -> None:
        for _ in range(batches):
            (pixels,) = pipeline.run()
            assert pixels.as_tensor().shape() == [batch, size, size, 3]
        try:
            pipeline.run()
        except StopIteration:
            pipeline.reset()

    return load
