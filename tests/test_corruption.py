"""A hundred damaged images among two thousand: no crash, no hang, and every other image is seen as it would be.

Pixels, draws and keys of good images are compared bit by bit with a run over undamaged files, in one and in two.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastselfie.pipelines.source import EncodedImages, Files
from fastselfie.pipelines.view import View
from tests.damage import DAMAGES
from tests.photographs import jpeg, noise, picture, pipeline, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

IMAGES, DAMAGED, BATCH = 2000, 100, 50
VIEW = View(size=16, grid=2, crop="resized", flip=True)
Seen = dict[int, tuple[bytes, int]]  # by sample: its pixels, and the label of what is seen


def seen(images: EncodedImages, ranks: int) -> tuple[Seen, dict[str, str]]:
    """One epoch in so many processes' shares: what is seen of each sample, and why images were refused."""
    found: Seen = {}
    reasons: dict[str, str] = {}
    for rank in range(ranks):
        source = pipeline(images, VIEW, batch=BATCH, threads=2, prefetch=2)
        share = BATCH // ranks
        requests = [(start + rank * share, start + (rank + 1) * share) for start in range(0, IMAGES, BATCH)]
        source.announce(requests)
        for request in requests:
            batch = source.batch(*request)
            reasons |= {image.name: image.reason for image in batch.refused}
            for place, sample in enumerate(batch.sample_B.tolist()):
                assert sample not in found
                found[sample] = batch.pixels[place].numpy().tobytes(), int(batch.labels_B[place])
    assert len(found) == IMAGES
    return found, reasons


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Each image is its own class, so that a label tells which image is seen."""
    contents = [jpeg(noise(18, 20 + i % 7, i) if i % 5 else picture(24, 20, i), quality=80) for i in range(250)]
    images = [(f"{i:04}.jpg", contents[i % 250]) for i in range(IMAGES)]
    return write(tmp_path_factory.mktemp("files"), images, labels=range(IMAGES))


@pytest.fixture(scope="module")
def undamaged(files: Files) -> Seen:
    found, reasons = seen(files, 1)
    assert not reasons
    assert all(label == sample for sample, (_, label) in found.items())
    return found


def damaged(files: Files) -> NDArray[np.int64]:
    """Damage a hundred files; which."""
    generator = np.random.default_rng(7)
    chosen = generator.permutation(IMAGES)[:DAMAGED]
    for number, index in enumerate(chosen.tolist()):
        path = files.path(index)
        path.write_bytes(list(DAMAGES.values())[number % 4](path.read_bytes(), generator))
    return chosen


def test_a_folder(files: Files, undamaged: Seen) -> None:
    """What the decoder refuses is named and replaced. A flipped bit may decode all the same, to other pixels."""
    chosen = set(damaged(files).tolist())
    once, reasons = seen(files, 1)
    twice, reasons_of_two = seen(files, 2)
    assert once == twice
    assert reasons == reasons_of_two
    refused = {int(Path(name).stem) for name in reasons}
    assert refused <= chosen
    for sample, (pixels, label) in once.items():
        if sample in refused:
            assert label not in refused
        else:
            assert label == sample
            assert pixels == undamaged[sample][0] or sample in chosen
    kinds = Counter(reasons.values())
    assert kinds["is empty"] == DAMAGED // 4
    assert kinds["is cut off"] + kinds["is no JPEG or PNG image"] >= DAMAGED // 4
