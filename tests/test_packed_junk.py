"""The right checksum makes no image of bytes: what is none is refused from packed shards too, whoever packed it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fastselfie.pipelines.decoders import DecoderName
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import Batch, View
from tests.packed_shards import write_packed
from tests.photographs import jpeg, noise, pipeline

VIEW = View(size=16, grid=2, crop="resized", flip=True)
GOOD = [jpeg(noise(40, 50, seed), quality=90) for seed in range(9)]


def claiming(rows: int, columns: int) -> bytes:
    """A JPEG file whose header speaks of another size."""
    data = GOOD[0]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", rows, columns) + data[at + 4 :]


NO_IMAGES = {
    "nothing": b"",
    "text": b"this is not an image at all",
    "half a file": GOOD[0][: len(GOOD[0]) // 2],
    "a header": GOOD[0][:180],
    "no rows": claiming(0, 50),
    "no columns": claiming(40, 0),
    "four hundred million pixels": claiming(20000, 20000),
    "four billion pixels": claiming(65000, 65000),
    "no end": GOOD[0][:-2],
    "another format": b"RIFF" + bytes(4) + b"WEBPVP8 " + bytes(60),
    "a beginning": b"\xff\xd8\xff",
    "two ends": b"\xff\xd8\xff" + np.random.default_rng(0).bytes(500) + b"\xff\xd9",
    "a damaged PNG file": b"\x89PNG\r\n\x1a\n" + bytes(40),
}


@pytest.mark.parametrize("name", NO_IMAGES)
@pytest.mark.parametrize("decoder", ["turbo", "dali"])
def test_it_is_refused(name: str, decoder: DecoderName, tmp_path: Path) -> None:
    """It alone: everything else is seen as it is without it."""
    pytest.importorskip({"turbo": "simplejpeg", "dali": "nvidia.dali"}[decoder])
    seen: dict[bytes, Batch] = {}
    for last in (GOOD[1], NO_IMAGES[name]):
        folder = write_packed(
            tmp_path / str(len(seen)), [*GOOD, last], labels=list(range(10)), classes=list("abcdefghij")
        )
        images = open_source(str(folder), 16).train
        assert isinstance(images, Shards)
        seen[last] = pipeline(images, VIEW, batch=10, threads=2, prefetch=1, decoder=decoder).batch(0, 10)
    with_it, without = seen[NO_IMAGES[name]], seen[GOOD[1]]
    assert [image.name for image in with_it.refused] == ["train-000003.tar/000000009.jpg"]
    place = with_it.sample_B.tolist().index(9)
    others = [other for other in range(10) if other != place]
    assert with_it.pixels[others].equal(without.pixels[others])
    assert int(with_it.labels_B[place]) != 9
