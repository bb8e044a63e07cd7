"""Batches of files: read and decoded ahead of the training step, in the order in which they will be asked for.

A batch stays a function of its arguments. What is announced only decides what is worked on early; a request that comes
otherwise is served all the same. Shapes: B images a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.errors import LocalError
from fastselfie.pipelines.decoder import Decoder
from fastselfie.pipelines.draws import window_draws
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_bytes import REMEDY, fault
from fastselfie.pipelines.sampler import Sampler
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.view import Batch, View
from fastselfie.randomness import Purpose, integers


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How files are loaded; changes no batch.

    Attributes:
        threads: that read, and as many that decode. prefetch: batches decoded ahead. batch: images of one at most.
    """

    threads: int
    prefetch: int
    batch: int


# What is asked for, and epoch and sample of each image in it.
_Announced: TypeAlias = tuple[tuple[int, int], Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A batch on its way: what was asked for, the keys of its samples, its files, and their bytes to come."""

    asked: tuple[int, int]
    epoch_B: Tensor
    sample_B: Tensor
    paths: list[Path]
    data: list[Future[NDArray[np.uint8]]]


class FilePipeline:
    """A split of files, or the part of it that ``rows`` names, seen through ``view``.

    A sample's key is its index in the whole split, as in `ResidentPipeline`.
    """

    def __init__(
        self, files: EncodedImages, *, view: View, seed: int, device: torch.device, loading: Loading, rows: Tensor | None = None
    ) -> None:
        self.view, self.seed = view, seed
        self._files, self._device, self._loading = files, device, loading
        self._labels_S = torch.from_numpy(files.labels_S)
        self._rows = torch.arange(len(files)) if rows is None else rows.cpu()
        self._sampler = Sampler(seed=seed, size=len(self._rows), device=torch.device("cpu"))
        self._readers = ThreadPoolExecutor(loading.threads, thread_name_prefix="read")
        self._decoder = Decoder(
            view, batch=loading.batch, threads=loading.threads, device=device, depth=loading.prefetch
        )
        self._announced: Iterator[_Announced] = iter(())
        self._failure: LocalError | None = None
        self._reading: deque[_Request] = deque()
        self._decoding: deque[_Request] = deque()

    def announce(self, requests: Iterable[tuple[int, int]]) -> None:
        """See `Pipeline.announce`."""
        self._expect((asked, *self._in_stream(*asked)) for asked in requests)

    def batch(self, start: int, stop: int) -> Batch:
        """See `Pipeline.batch`.

        Raises:
            LocalError: a file cannot be read or decoded; names it.
        """
        if not self._decoding or self._decoding[0].asked != (start, stop):
            self.announce([(start, stop)])
        return self._take()

    def in_order(self, requests: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """See `Pipeline.in_order`: images [start, stop) of the rows. Only for a pipeline of a plain view.

        Raises:
            LocalError: see `batch`.
        """
        assert self.view == self.view.plain(), "a pipeline has one graph, and this one's draws at random"
        rows = [self._rows[start:stop] for start, stop in requests]
        self._expect((asked, torch.zeros_like(rows_B), rows_B) for asked, rows_B in zip(requests, rows, strict=True))
        for _ in requests:
            yield self._take()

    def _in_stream(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Epoch and sample of the stream's entries [start, stop)."""
        epoch_B, entry_B = self._sampler.samples(start, stop)
        return epoch_B, self._rows[entry_B]

    def _expect(self, announced: Iterator[_Announced]) -> None:
        """Begin with other requests; those under way are dropped."""
        self._reading.clear()
        self._decoding.clear()
        self._decoder.drop()
        self._announced, self._failure = announced, None
        self._work_ahead()

    def _work_ahead(self) -> None:
        """Keep ``prefetch`` batches in decoding and as many again in reading, up to one with an unreadable file."""
        wanted = 2 * self._loading.prefetch - len(self._decoding) - len(self._reading)
        for asked, epoch_B, sample_B in islice(self._announced, wanted):
            self._reading.append(self._read(asked, epoch_B, sample_B))
        while self._reading and len(self._decoding) < self._loading.prefetch and self._failure is None:
            try:
                self._decode(self._reading.popleft())
            except LocalError as error:
                self._failure = error  # said when that batch is asked for, not before

    def _read(self, asked: tuple[int, int], epoch_B: Tensor, sample_B: Tensor) -> _Request:
        paths = [Path(self._files.name(index)) for index in sample_B.tolist()]
        data = [self._readers.submit(_bytes, self._files, index) for index in sample_B.tolist()]
        return _Request(asked=asked, epoch_B=epoch_B, sample_B=sample_B, paths=paths, data=data)

    def _decode(self, request: _Request) -> None:
        draws = flips = None
        if self.view.crop == "resized":
            draws = window_draws(self.seed, request.epoch_B, request.sample_B).numpy()
            flips = self._flip(request).numpy().astype(np.int32)
        data = [part.result() for part in request.data]
        self._decoder.schedule(Encoded(paths=request.paths, data=data, draws=draws, flip=flips))
        self._decoding.append(request)

    def _take(self) -> Batch:
        if not self._decoding:
            assert self._failure is not None, "more is taken than was announced"
            raise self._failure
        request = self._decoding.popleft()
        try:
            pixels, _ = self._decoder.take()
        except LocalError:
            self._decoding.clear()  # the decoder has forgotten these too
            raise
        self._work_ahead()
        epoch_B, sample_B, view = request.epoch_B, request.sample_B, self.view
        corner_B2 = flip_B = None
        # A random resized crop was flipped in the graph; a padded crop is made with the patches, flip and all.
        if view.crop == "pad" and view.pad:
            corner_B2 = self._there(integers(self.seed, Purpose.CROP, epoch_B, sample_B, 2, 2 * view.pad + 1))
        if view.crop == "pad" and view.flip:
            flip_B = self._there(self._flip(request).bool())
        return Batch(
            view=view, pixels=pixels, epoch_B=self._there(epoch_B), sample_B=self._there(sample_B),
            labels_B=self._there(self._labels_S[sample_B]), corner_B2=corner_B2, flip_B=flip_B,
        )  # fmt: skip

    def _flip(self, request: _Request) -> Tensor:
        """0 or 1 a sample, int64 (B,)."""
        if not self.view.flip:
            return torch.zeros_like(request.sample_B)
        return integers(self.seed, Purpose.FLIP, request.epoch_B, request.sample_B, 1, 2)[:, 0]

    def _there(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for it."""
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _bytes(files: EncodedImages, index: int) -> NDArray[np.uint8]:
    try:
        data = files.read(index)
    except OSError as error:
        raise LocalError(f"{files.name(index)}: cannot be read ({error.strerror}); {REMEDY}") from None
    wrong = fault(data)
    if wrong:
        raise LocalError(f"{files.name(index)}: {wrong}; {REMEDY}")
    return np.frombuffer(data, dtype=np.uint8)
