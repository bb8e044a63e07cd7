"""A hundred damaged images among two thousand: no crash, no hang, and every other image is seen as it would be.

Pixels, draws and keys of good images are compared bit by bit with one over undamaged files, in one process and in two.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.damage import DAMAGES, flipped, zeroed
from fastselfie.pipelines.decoders import DecoderName
from fastselfie.pipelines.source import EncodedImages, Files
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import View
from tests.packed_shards import write_packed
from tests.photographs import jpeg, noise, picture, pipeline, write

IMAGES, DAMAGED, BATCH = 2000, 100, 50
VIEW = View(size=16, grid=2, crop="resized", flip=True)
CONTENTS = [jpeg(noise(18, 20 + i % 7, i) if i % 5 else picture(24, 20, i), quality=80) for i in range(250)]
Seen = dict[int, tuple[bytes, int]]  # by sample: its pixels, and the label of what is seen


@pytest.fixture(scope="module", params=["turbo", "dali"])
def decoder(request: pytest.FixtureRequest) -> DecoderName:
    pytest.importorskip({"turbo": "simplejpeg", "dali": "nvidia.dali"}[request.param])
    name: DecoderName = request.param
    return name


def seen(images: EncodedImages, ranks: int, decoder: DecoderName) -> tuple[Seen, dict[str, str]]:
    """One epoch in so many processes' shares: what is seen of each sample, and why images were refused."""
    found: Seen = {}
    reasons: dict[str, str] = {}
    for rank in range(ranks):
        source = pipeline(images, VIEW, batch=BATCH, threads=2, prefetch=2, decoder=decoder)
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


def check_the_rest(found: Seen, undamaged: Seen, refused: set[int], damaged: set[int]) -> None:
    """Each image is its own class, so that a label tells which image is seen."""
    assert refused <= damaged
    for sample, (pixels, label) in found.items():
        if sample in refused:
            assert label not in refused
        else:
            assert label == sample
            assert pixels == undamaged[sample][0] or sample in damaged


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory, decoder: DecoderName) -> Seen:
    images = [(f"{index}.jpg", CONTENTS[index % 250]) for index in range(IMAGES)]
    found, reasons = seen(write(tmp_path_factory.mktemp("good"), images, labels=range(IMAGES)), 1, decoder)
    assert not reasons
    assert all(label == sample for sample, (_, label) in found.items())
    return found


def damaged_folder(root: Path) -> tuple[Files, dict[int, str]]:
    """A folder with a hundred damaged files, and by index what was done to them."""
    images = [(f"{index}.jpg", CONTENTS[index % 250]) for index in range(IMAGES)]
    files, generator = write(root, images, labels=range(IMAGES)), np.random.default_rng(7)
    done = {}
    for number, index in enumerate(generator.permutation(IMAGES)[:DAMAGED].tolist()):
        kind = [*DAMAGES, "swapped"][number % 5]
        data = CONTENTS[(index + 1) % 250] if kind == "swapped" else DAMAGES[kind](CONTENTS[index % 250], generator)
        files.path(index).write_bytes(data)
        done[index] = kind
    return files, done


def test_a_folder(undamaged: Seen, decoder: DecoderName, tmp_path: Path) -> None:
    """What the decoder refuses is named and replaced. A flipped bit mostly decodes, to other pixels, and another file's
    contents always do.
    """
    files, done = damaged_folder(tmp_path)
    found, reasons = seen(files, 1, decoder)
    assert (found, reasons) == seen(files, 2, decoder)
    refused = {int(Path(name).stem) for name in reasons}
    check_the_rest(found, undamaged, refused, set(done))
    named = Counter(done[index] for index in refused)
    assert (named["emptied"], named["truncated"], named["swapped"]) == (20, 20, 0)
    assert named["flipped"] < 20
    assert Counter(reasons.values())["is empty"] == 20


def test_packed_shards(undamaged: Seen, decoder: DecoderName, tmp_path: Path) -> None:
    """Checksums tell every damage: flipped bits, zeros in a part or all, other images' bytes, a shard cut off."""
    write_packed(
        tmp_path, [CONTENTS[index % 250] for index in range(IMAGES)], labels=range(IMAGES),
        classes=[str(index) for index in range(IMAGES)], a_shard=300,
    )  # fmt: skip
    images = open_source(str(tmp_path), 16).train
    assert isinstance(images, EncodedImages)
    rows, generator = np.load(tmp_path / "train.npy"), np.random.default_rng(8)
    last = np.flatnonzero(rows["shard"] == 2)[-10:]
    chosen = [index for index in generator.permutation(IMAGES).tolist() if index not in last][: DAMAGED - len(last)]
    zeros, swaps, empties = chosen[30:55], chosen[55:75], chosen[75:]  # the first thirty: a bit each
    for index in chosen:
        row, data = rows[index], CONTENTS[index % 250]
        new = zeroed(data, generator) if index in zeros else flipped(data, generator)
        if index in empties:
            new = bytes(len(data))
        if index in swaps:  # with another one's bytes, as far as they go
            new = CONTENTS[(index + 1) % 250].ljust(len(data), b"\0")[: len(data)]
        with (tmp_path / f"train-{row['shard']:06d}.tar").open("r+b") as tar:
            tar.seek(row["offset"])
            tar.write(new)
    with (tmp_path / "train-000002.tar").open("r+b") as tar:
        tar.truncate(int(rows[last[0]]["offset"]) + 10)
    found, reasons = seen(images, 1, decoder)
    assert (found, reasons) == seen(images, 2, decoder)
    refused = {int(Path(name).stem) for name in reasons}
    assert refused == {*chosen, *last.tolist()}
    assert Counter(reasons.values()) == {"does not match its checksum": DAMAGED - len(last), "is cut off": len(last)}
    check_the_rest(found, undamaged, refused, refused)
