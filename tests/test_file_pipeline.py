"""Batches of files are a function of what is asked: not of threads, prefetching, announcements or shares."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.decoder import DaliDecoder
from fastselfie.pipelines.file_pipeline import FilePipeline
from fastselfie.pipelines.source import Files
from fastselfie.pipelines.view import Batch, View
from fastselfie.randomness import epoch_order
from tests.photographs import images_of, jpeg, noise, pipeline, png, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

IMAGES, BATCH = 37, 16
VIEW = View(size=32, grid=4, crop="resized", flip=True)
PLAIN = View(size=32, grid=4)
REQUESTS = [(start, start + BATCH) for start in range(0, 6 * BATCH, BATCH)]
Bytes = tuple[bytes, ...]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """JPEG files of many sizes, some ten times as large as others, so that they are ready in another order."""
    images = [(f"{i:02}.jpg", jpeg(noise(*((300, 400) if i % 9 == 0 else (20 + i, 60 - i)), i))) for i in range(IMAGES)]
    return write(tmp_path_factory.mktemp("files"), images, labels=[i * 7 % 5 for i in range(IMAGES)])


def contents(batch: Batch) -> Bytes:
    """All that a batch holds, as bytes."""
    tensors = (batch.pixels, batch.epoch_B, batch.sample_B, batch.labels_B)
    return tuple(tensor.numpy().tobytes() for tensor in tensors)


def batches(source: FilePipeline, requests: Iterable[tuple[int, int]] = REQUESTS) -> list[Bytes]:
    return [contents(source.batch(*request)) for request in requests]


@pytest.fixture(scope="module")
def expected(files: Files) -> list[Bytes]:
    """One thread, nothing ahead."""
    found = batches(pipeline(files, VIEW, batch=BATCH))
    assert len(set(found)) == len(REQUESTS)
    return found


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("prefetch", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_prefetching(
    threads: int, prefetch: int, announced: bool, files: Files, expected: list[Bytes]
) -> None:
    source = pipeline(files, VIEW, batch=BATCH, threads=threads, prefetch=prefetch)
    if announced:
        source.announce(iter(REQUESTS))
    assert batches(source) == expected


ANNOUNCED = {
    "others": [(160, 176), (176, 192)],
    "later ones": REQUESTS[2:],
    "too few": REQUESTS[:2],
    "backwards": REQUESTS[::-1],
    "of another size": [(0, 4), (4, 8)],
    "the first twice": [REQUESTS[0], *REQUESTS],
}


@pytest.mark.parametrize("requests", ANNOUNCED.values(), ids=ANNOUNCED.keys())
def test_wrong_announcements(requests: Sequence[tuple[int, int]], files: Files, expected: list[Bytes]) -> None:
    source = pipeline(files, VIEW, batch=BATCH, prefetch=2)
    source.announce(requests)
    assert batches(source) == expected
    source.announce(REQUESTS)
    assert batches(source, REQUESTS[:1]) == expected[:1]
    source.announce(REQUESTS)  # again, with batches under way
    assert batches(source) == expected


@pytest.mark.parametrize("shares", [2, 4, 8])
def test_shares_of_ranks_and_micro_batches_make_the_whole(shares: int, files: Files, expected: list[Bytes]) -> None:
    """Each share from a pipeline of its own, as the processes of a machine have."""
    size = BATCH // shares
    for whole, (start, stop) in zip(expected[:3], REQUESTS[:3], strict=True):
        sources = [pipeline(files, VIEW, batch=size) for _ in range(shares)]
        parts = [
            contents(source.batch(at, at + size)) for source, at in zip(sources, range(start, stop, size), strict=True)
        ]
        assert tuple(b"".join(column) for column in zip(*parts, strict=True)) == whole


def test_a_subset_keeps_the_keys_of_its_samples(files: Files) -> None:
    """Its images are cropped and mirrored as in the whole; entries are of the subset alone."""
    rows = [30, 2, 17, 5, 36]
    subset = pipeline(files, VIEW, batch=20, rows=torch.tensor(rows)).batch(0, 20)
    whole = [pipeline(files, VIEW, batch=IMAGES).batch(epoch * IMAGES, (epoch + 1) * IMAGES) for epoch in range(4)]
    assert subset.sample_B.tolist() == [rows[i] for epoch in range(4) for i in epoch_order(3, epoch, 5).tolist()]
    assert subset.epoch_B.tolist() == [epoch for epoch in range(4) for _ in rows]
    for pixels, epoch, sample in zip(subset.pixels, subset.epoch_B.tolist(), subset.sample_B.tolist(), strict=True):
        assert torch.equal(pixels, whole[epoch].pixels[whole[epoch].sample_B == sample][0])
    assert subset.labels_B.tolist() == [sample * 7 % 5 for sample in subset.sample_B.tolist()]
    plain = pipeline(files, PLAIN, batch=3, rows=torch.tensor(rows))
    assert [batch.sample_B.tolist() for batch in plain.in_order([(0, 3), (3, 5)])] == [[30, 2, 17], [5, 36]]


@pytest.mark.parametrize("announced", [True, False])
def test_three_epochs_show_every_image_thrice(announced: bool, tmp_path: Path) -> None:
    """Counted by colour. No batch is short, and some span two epochs."""
    colours = [(6 * i, 250 - 6 * i, 40 + 5 * i) for i in range(IMAGES)]
    images = [(f"{i:02}.png", png(np.full((20, 30, 3), colour, dtype=np.uint8))) for i, colour in enumerate(colours)]
    source = pipeline(write(tmp_path, images, range(IMAGES)), PLAIN, batch=BATCH, prefetch=2)
    requests = [(start, start + BATCH) for start in range(0, 3 * IMAGES, BATCH)]
    if announced:
        source.announce(requests)
    taken = [source.batch(*request) for request in requests]
    assert [len(batch.pixels) for batch in taken] == [BATCH] * 7
    seen: NDArray[np.uint8] = np.concatenate([images_of(batch.pixels) for batch in taken])[: 3 * IMAGES]
    assert (seen == seen[:, :1, :1]).all(), "each image is of one colour"
    shown = [colours.index(tuple(image[0, 0].tolist())) for image in seen]
    assert Counter(shown) == dict.fromkeys(range(IMAGES), 3)
    assert shown == torch.cat([batch.sample_B for batch in taken]).tolist()[: 3 * IMAGES]
    assert shown == torch.cat([batch.labels_B for batch in taken]).tolist()[: 3 * IMAGES]
    assert any(len(batch.epoch_B.unique()) == 2 for batch in taken)


def test_evaluation_in_order(files: Files) -> None:
    requests = [(0, 10), (10, 20), (20, 30), (30, 37)]
    ahead, alone = pipeline(files, PLAIN, batch=10, prefetch=2), pipeline(files, PLAIN, batch=10)
    for batch, (start, stop) in zip(ahead.in_order(requests), requests, strict=True):
        assert batch.sample_B.tolist() == list(range(start, stop))
        assert batch.epoch_B.tolist() == [0] * (stop - start)
        assert contents(batch) == contents(next(alone.in_order([(start, stop)])))


def test_an_evaluation_broken_off_leaves_nothing_behind(files: Files) -> None:
    source = pipeline(files, PLAIN, batch=10, prefetch=2)
    first = contents(next(source.in_order([(0, 10), (10, 20), (20, 30)])))
    assert contents(next(source.in_order([(0, 10)]))) == first
    assert isinstance(source._decoder, DaliDecoder)
    assert len(source._decoder._under_way) == 0


def test_a_batch_keeps_its_pixels(files: Files, expected: list[Bytes]) -> None:
    """DALI hands out its own memory, which later batches must not be written to."""
    source = pipeline(files, VIEW, batch=BATCH, prefetch=2)
    source.announce(REQUESTS)
    kept = [source.batch(*request) for request in REQUESTS]
    del source
    gc.collect()
    assert [contents(batch) for batch in kept] == expected


def test_what_is_under_way(files: Files) -> None:
    source = pipeline(files, VIEW, batch=BATCH, prefetch=2)
    assert isinstance(source._decoder, DaliDecoder)
    under_way = source._decoder._under_way
    source.announce(REQUESTS)
    assert len(under_way) == 2
    wait([reading for request in source._reading for reading in request.reading])
    source.batch(*REQUESTS[0])
    assert len(under_way) == 2
    source.announce([])
    assert len(under_way) == 0
    source.announce(REQUESTS[:1])
    source.batch(*REQUESTS[0])
    assert len(under_way) == 0


def test_a_batch_does_not_wait_for_reads_of_later_ones(files: Files, expected: list[Bytes]) -> None:
    """Storage hangs at the third batch: the two before it come, and it comes when storage goes on."""

    class Hanging(Files):
        def read(self, index: int) -> bytes:
            if index in late and not going_on.wait(20):
                raise OSError("hangs")
            return super().read(index)

    late: set[int] = set()
    going_on = threading.Event()
    hanging = Hanging(root=files.root, names=files.names, labels_S=files.labels_S)
    source = pipeline(hanging, VIEW, batch=BATCH, prefetch=2)
    first = [source.batch(*request).sample_B.tolist() for request in REQUESTS[:3]]
    late.update(set(first[2]) - set(first[0]) - set(first[1]))
    assert late
    source.announce(REQUESTS)
    assert [contents(source.batch(*request)) for request in REQUESTS[:2]] == expected[:2]
    threading.Timer(0.2, going_on.set).start()
    assert [contents(source.batch(*request)) for request in REQUESTS[2:]] == expected[2:]


def test_a_pipeline_takes_its_threads_along(files: Files) -> None:
    before = set(threading.enumerate())
    source = pipeline(files, VIEW, batch=BATCH, threads=3, prefetch=2)
    source.announce(REQUESTS)
    source.batch(*REQUESTS[0])
    assert set(threading.enumerate()) - before
    del source
    gc.collect()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before  # of those before, earlier tests' may have ended meanwhile


@pytest.mark.parametrize("kind", ["gone", "empty", "text", "folder"])
def test_a_file_that_changes_after_it_was_listed(kind: str, tmp_path: Path) -> None:
    """Named in the batches that it belongs into, and no other batch is touched."""
    listed = write(tmp_path, [(f"{i}.jpg", jpeg(noise(20, 20, i))) for i in range(24)])
    requests = [(start, start + 4) for start in range(0, 24, 4)]
    good = batches(pipeline(listed, VIEW, batch=4, prefetch=2), requests)
    bad = int(epoch_order(3, 0, 24)[20])
    path = listed.path(bad)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(b"" if kind == "empty" else b"no image")
    source = pipeline(listed, VIEW, batch=4, prefetch=2)
    for request, expected in zip(requests, good, strict=True):
        batch = source.batch(*request)
        assert {image.name for image in batch.refused} == ({str(path)} if request == (20, 24) else set())
        assert (contents(batch) == expected) == (request != (20, 24))


def test_without_dali(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = lambda name: None if name == "nvidia.dali" else object()  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", found)
    with pytest.raises(UserError, match=r"needs NVIDIA DALI: pip install 'fastselfie\[dali\]'"):
        pipeline(files, VIEW, batch=4)
