"""A batch is the one that was asked for, whatever was asked for, broken off or left out before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from fastselfie.pipelines.decoder import DaliDecoder
from fastselfie.pipelines.decoders import DecoderName
from fastselfie.pipelines.file_pipeline import FilePipeline
from fastselfie.pipelines.graph_runner import GraphRunner, _device_id
from fastselfie.pipelines.source import Files
from fastselfie.pipelines.view import View
from tests.photographs import jpeg, picture, pipeline, undecodable, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

IMAGES = 16
REQUESTS = [(start, start + 4) for start in range(0, IMAGES, 4)]
PLAIN, RANDOM = View(size=32, grid=4), View(size=32, crop="resized", flip=True)
DECODERS = pytest.mark.parametrize("decoder", ["dali", "turbo"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    return write(folder, [(f"{i:02}.jpg", jpeg(picture(40, 48, i))) for i in range(IMAGES)], labels=range(IMAGES))


@pytest.fixture(scope="module")
def expected(files: Files) -> list[torch.Tensor]:
    source = pipeline(files, RANDOM, batch=4)
    return [source.batch(*request).pixels for request in REQUESTS]


@DECODERS
def test_two_evaluations_in_turns(decoder: DecoderName, files: Files) -> None:
    source = pipeline(files, PLAIN, batch=4, prefetch=2, decoder=decoder)
    for one, other, (start, stop) in zip(source.in_order(REQUESTS), source.in_order(REQUESTS), REQUESTS, strict=True):
        assert one.sample_B.tolist() == other.sample_B.tolist() == list(range(start, stop))
        assert torch.equal(one.pixels, other.pixels)


@DECODERS
def test_an_entry_of_the_stream_while_an_evaluation_is_under_way(decoder: DecoderName, files: Files) -> None:
    source, alone = (pipeline(files, PLAIN, batch=4, prefetch=2, decoder=decoder) for _ in range(2))
    next(source.in_order(REQUESTS))
    batch = source.batch(*REQUESTS[1])
    assert batch.entry == REQUESTS[1][0]
    assert torch.equal(batch.sample_B, alone.batch(*REQUESTS[1]).sample_B)


def interrupt_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Ctrl-C right after the next call of a method of ``owner``."""
    method = getattr(owner, name)

    def interrupted(*arguments: Any) -> None:
        method(*arguments)
        monkeypatch.setattr(owner, name, method)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("again", ["announced", "goes on"])
@pytest.mark.parametrize("where", ["feed_input", "schedule_run", "share_outputs", "release_outputs", "take", "popleft"])
def test_ctrl_c_in_the_middle_of_a_batch(
    where: str, again: Literal["announced", "goes on"], files: Files, expected: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of DALI's graph, which counts runs and keeps what it was fed with, and between it and us."""
    source = pipeline(files, RANDOM, batch=4, prefetch=2)
    source.announce(REQUESTS)
    assert torch.equal(source.batch(*REQUESTS[0]).pixels, expected[0])
    decoder = source._decoder
    assert isinstance(decoder, DaliDecoder)
    owners = {"take": (decoder._runner, "take"), "popleft": (decoder, "take")}
    interrupt_once(monkeypatch, *owners.get(where, (decoder._runner._graph, where)))
    with pytest.raises(KeyboardInterrupt):
        source.batch(*REQUESTS[1])
    if again == "announced":
        source.announce(REQUESTS[1:])
    for request, pixels in zip(REQUESTS[1:], expected[1:], strict=True):
        assert torch.equal(source.batch(*request).pixels, pixels)


def test_ctrl_c_while_batches_are_announced(
    files: Files, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pipeline(files, RANDOM, batch=4, prefetch=2)
    interrupt_once(monkeypatch, GraphRunner, "_feed")
    with pytest.raises(KeyboardInterrupt):
        source.announce(REQUESTS)
    for _ in range(2):
        source.announce(REQUESTS)
        for request, pixels in zip(REQUESTS, expected, strict=True):
            assert torch.equal(source.batch(*request).pixels, pixels)


@DECODERS
@pytest.mark.parametrize("bad", [undecodable(picture(40, 48)), b""])
def test_an_evaluations_batch_without_any_good_image_is_empty(bad: bytes, decoder: DecoderName, tmp_path: Path) -> None:
    contents = [jpeg(picture(40, 48, i)) for i in range(9)]
    for index in (2, 4, 5):
        contents[index] = bad
    listed = write(tmp_path, [(f"{i}.jpg", data) for i, data in enumerate(contents)])
    source: FilePipeline = pipeline(listed, PLAIN, batch=2, prefetch=3, decoder=decoder)
    batches = list(source.in_order([(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]))
    assert [batch.sample_B.tolist() for batch in batches] == [[0, 1], [3], [], [6, 7], [8]]
    assert [len(batch.refused) for batch in batches] == [0, 1, 2, 0, 0]
    empty = batches[2]
    assert empty.images().shape == (0, 32, 32, 3)
    assert (empty.sample_B.dtype, empty.labels_B.dtype, len(empty.labels_B)) == (torch.int64, torch.int64, 0)


def test_cuda_alone_is_the_device_that_pytorch_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of several takes its own after `torch.cuda.set_device`, and not the first."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    devices = ("cpu", "cuda", "cuda:0", "cuda:2")
    assert [_device_id(torch.device(device)) for device in devices] == [None, 3, 0, 2]
