"""What other people's training loops and frameworks do with a loader."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastselfie.errors import UserError
from fastselfie.pipelines import Loader, loader
from tests.photographs import jpeg, picture, write

IMAGES, BATCH = 20, 6
STEPS = IMAGES // BATCH  # of an iteration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("simplejpeg")
    root = tmp_path_factory.mktemp("data")
    write(root, [(f"train/{index % 2}/{index}.jpg", jpeg(picture(40, 50, index))) for index in range(IMAGES)])
    return root


@pytest.fixture(scope="module")
def stream(folder: Path) -> list[bytes]:
    """Pixels of the first steps, each asked for by its number."""
    batches = opened(folder)
    return [pixels(images) for step in range(4 * STEPS) for images, _ in batches.steps(step, step + 1)]


def opened(folder: Path, **options: Any) -> Loader:
    return loader(folder, batch_size=BATCH, size=32, dtype=torch.uint8, threads=2, **options)


def pixels(images: torch.Tensor) -> bytes:
    return images.contiguous().numpy().tobytes()


def seen(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], stream: list[bytes]) -> list[int]:
    """The steps that the batches are."""
    return [stream.index(pixels(images)) for images, _ in batches]


def test_an_iterator_that_nobody_reads_costs_nothing(folder: Path, stream: list[bytes]) -> None:
    """Lightning calls `iter` once before it trains, to see whether that can be done."""
    batches = opened(folder)
    iter(batches)
    assert seen(iter(batches), stream) == [0, 1, 2]


def test_iterations_that_are_left_early_or_run_in_turns(folder: Path, stream: list[bytes]) -> None:
    batches = opened(folder)
    assert seen(islice(batches, 1), stream) == [0]
    one, other = iter(batches), iter(batches)
    assert [seen(iter([next(which)]), stream) for which in (one, other, one, other)] == [[3], [6], [4], [7]]
    assert seen(iter(batches), stream) == [9, 10, 11]


@pytest.mark.parametrize("taken", range(2 * STEPS + 1))
def test_another_loader_goes_on_where_one_was(taken: int, folder: Path, stream: list[bytes]) -> None:
    """Also in more processes: Lightning, Accelerate and torch.distributed.checkpoint ask for these two methods."""
    before = opened(folder)
    batches = (batch for _ in range(3) for batch in before)
    assert seen(islice(batches, taken), stream) == list(range(taken))
    state = pickle.loads(pickle.dumps(before.state_dict()))
    after = [opened(folder, rank=rank, world_size=2) for rank in (0, 1)]
    for part in after:
        part.load_state_dict(state)
    rest = [zip(*after, strict=True) for _ in range(3 - taken // STEPS)]
    whole = [(torch.cat([a[0], b[0]]), a[1]) for iteration in rest for a, b in iteration]
    assert seen(iter(whole), stream) == list(range(taken, 3 * STEPS))
    assert after[0].state_dict() == {"step": 3 * STEPS}


def test_one_loader_in_two_threads(folder: Path, stream: list[bytes]) -> None:
    batches = opened(folder)
    with ThreadPoolExecutor(2) as pool:
        ranges = [(0, 6), (6, 12)] * 3
        taken = list(pool.map(lambda steps: seen(batches.steps(*steps), stream), ranges))
    assert taken == [list(range(*steps)) for steps in ranges]


def _first(batches: Loader, answer: Any) -> None:
    try:
        answer.send(str(next(iter(batches))))
    except UserError as error:
        answer.send(str(error))


@pytest.mark.parametrize("used", [False, True])
def test_a_forked_process_is_told_to_make_its_own(used: bool, folder: Path) -> None:
    """Threads are not forked: what was begun in the parent would be waited for without end."""
    batches = opened(folder)
    if used:
        next(iter(batches))
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_first, args=(batches, there))
    child.start()
    try:
        assert here.poll(30), "the process hangs"
        assert here.recv().startswith("this loader was made in another process (")
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_copy_is_refused(copied: Callable[[Loader], object], folder: Path) -> None:
    with pytest.raises(TypeError, match=r"neither pickled nor copied: call loader\(\.\.\.\) in the process that uses"):
        copied(opened(folder))


def test_processes_that_train_on_the_same_images_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Frameworks share out a torch DataLoader, and leave every other iterable as it is."""
    alone, shared, tested = opened(folder), opened(folder, rank=1, world_size=2), opened(folder, view="plain")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    with caplog.at_level(logging.WARNING, "fastselfie"):
        for batches in (shared, tested, alone, alone):
            next(iter(batches))
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("world_size 1: each of 2 processes trains on the same images;")
    assert said.endswith("loader(..., rank=1, world_size=2)")
