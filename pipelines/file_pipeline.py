"""Batches of encoded images: read and decoded ahead of the training step, in the order in which they will be asked for.

A batch stays a function of its arguments. What is announced only decides what is worked on early; a request that comes
otherwise is served all the same. An image that cannot be used is replaced, see `fastselfie.pipelines.refusal`.
Shapes: B images asked for, K images of a batch: B, or fewer where bad ones are left out of an evaluation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastselfie.errors import LocalError
from fastselfie.pipelines.decoders import make_decoder
from fastselfie.pipelines.draws import window_draws
from fastselfie.pipelines.gathering import Gatherer, Request
from fastselfie.pipelines.gpu_decoding import BY_DEFAULT
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.rows import AllBut, Rows
from fastselfie.pipelines.sampler import Sampler
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import Batch, View
from fastselfie.randomness import Purpose, integers

# What is asked for, and epoch and sample of each image in it.
_Announced: TypeAlias = tuple[tuple[int, int], Tensor, Tensor]


class FilePipeline:
    """A split of encoded images, or the part of it that ``rows`` names, seen through ``view``.

    A sample's key is its index in the whole split, as in `ResidentPipeline`.
    """

    def __init__(
        self, images: EncodedImages, *, view: View, seed: int, device: torch.device, loading: Loading,
        rows: Rows | None = None,
    ) -> None:  # fmt: skip
        self.view, self.seed = view, seed
        self._device, self._loading = device, loading
        rows = AllBut(len(images)) if rows is None else rows
        self._rows = rows.cpu() if isinstance(rows, Tensor) else rows
        self._sampler = Sampler(seed=seed, size=len(self._rows), device=torch.device("cpu"))
        self._gatherer = Gatherer(images, self._rows, seed, loading.threads)
        self._decoder = make_decoder(
            loading.decoder, view, batch=loading.batch, threads=loading.threads, device=device, depth=loading.prefetch,
            gpu=loading.gpu if device.type == "cuda" else BY_DEFAULT,
        )  # fmt: skip
        self._announced: Iterator[_Announced] = iter(())
        self._substituted = True
        self._failure: LocalError | None = None
        self._failed_request: tuple[int, int] | None = None
        self._reading: deque[Request] = deque()
        self._decoding: deque[Request] = deque()

    def announce(self, requests: Iterable[tuple[int, int]]) -> None:
        """See `Pipeline.announce`."""
        self._expect(((asked, *self._in_stream(*asked)) for asked in requests), substituted=True)

    def batch(self, start: int, stop: int) -> Batch:
        """See `Pipeline.batch`.

        Raises:
            LocalError: too many images cannot be used.
        """
        under_way = self._decoding or self._reading
        next_up = under_way[0].asked if under_way else self._failed_request
        if next_up != (start, stop) or not self._substituted:
            self.announce([(start, stop)])
        return self._take()

    def in_order(self, requests: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """See `Pipeline.in_order`: images [start, stop) of the rows. Only for a pipeline of a plain view.

        Raises:
            LocalError: see `batch`.
        """
        assert self.view == self.view.plain(), "a pipeline has one graph, and this one's draws at random"
        announced: Iterator[_Announced] | None = None
        for number in range(len(requests)):
            if self._announced is not announced:  # at first, and where somebody else has asked in the meantime
                samples = ((asked, self._rows[slice(*asked)]) for asked in requests[number:])
                announced = ((asked, torch.zeros_like(sample_B), sample_B) for asked, sample_B in samples)
                self._expect(announced, substituted=False)
            yield self._take()

    def _in_stream(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Epoch and sample of the stream's entries [start, stop)."""
        epoch_B, entry_B = self._sampler.samples(start, stop)
        return epoch_B, self._rows[entry_B]

    def _expect(self, announced: Iterator[_Announced], substituted: bool) -> None:
        """Begin with other requests; those under way are dropped."""
        self._drop()
        self._announced, self._substituted, self._failure = announced, substituted, None
        self._work_ahead(at_least=self._loading.prefetch)

    def _drop(self) -> None:
        self._cancel()
        self._decoding.clear()
        self._decoder.drop()

    def _cancel(self) -> None:
        """Forget batches in reading, and leave unread what no thread has begun with."""
        for request in self._reading:
            for reading in request.reading:
                reading.cancel()
        self._reading.clear()

    def _work_ahead(self, *, at_least: int) -> None:
        """Keep ``prefetch`` batches in decoding and as many again in reading, up to one that cannot be had.

        Reads are waited for until ``at_least`` so many are in decoding: storage may be slow for a moment, and a batch
        that is there already is not to come late for those after it.
        """
        if self._failure is not None:
            return
        wanted = 2 * self._loading.prefetch - len(self._decoding) - len(self._reading)
        for announced in islice(self._announced, wanted):
            self._reading.append(self._gatherer.begin(*announced, substituted=self._substituted))
        while self._reading and len(self._decoding) < self._loading.prefetch:
            if len(self._decoding) >= at_least and not self._reading[0].is_read():
                return
            request = self._reading.popleft()
            try:
                self._gatherer.finish(request)
            except LocalError as error:
                # Said when that batch is asked for, not before.
                self._failure, self._failed_request = error, request.asked
                self._cancel()  # of storage that hangs each read takes long, and a process ends after all of them
                return
            self._decoding.append(request)
            self._decode(request)

    def _decode(self, request: Request) -> None:
        if not request.there():  # of an evaluation's few images none can be used
            return
        draws = flips = None
        if self.view.crop == "resized":
            keys = request.keys()
            draws, flips = window_draws(self.seed, *keys).numpy(), self._flip(*keys).numpy().astype(np.int32)
        self._decoder.schedule(Encoded(data=request.encoded(), draws=draws, flip=flips))

    def _take(self) -> Batch:
        """The next batch. After an error, or Ctrl-C, nothing is under way."""
        try:
            if not self._decoding:
                self._work_ahead(at_least=1)
            if not self._decoding:
                assert self._failure is not None, "more is taken than was announced"
                self._failed_request = None  # asked for once more, it is read once more
                raise self._failure
            pixels = self._pixels(self._decoding[0])
            request = self._decoding.popleft()
            self._work_ahead(at_least=0)
            return self._describe(request, pixels)
        except BaseException:
            self._drop()
            raise

    def _pixels(self, request: Request) -> Tensor:
        """Those of the oldest batch under way."""
        while request.there():
            try:
                return self._decoder.take()
            except Undecodable as error:
                self._refuse(error.bad)
        patch = self.view.size // self.view.grid
        return torch.empty(0, self.view.grid, patch, self.view.grid, patch, 3, dtype=torch.uint8)

    def _refuse(self, bad: dict[tuple[int, int], str]) -> None:
        """Replace what cannot be decoded, and decode everything that was under way again."""
        for run, request in enumerate([request for request in self._decoding if request.there()]):
            for position, place in enumerate(request.there()):
                if (run, position) in bad:
                    self._gatherer.refuse(request, place, bad[run, position])
        for request in self._decoding:
            self._decode(request)

    def _describe(self, request: Request, pixels: Tensor) -> Batch:
        (epoch_K, sample_K), view = request.keys(), self.view
        corner_B2 = flip_B = None
        # A random resized crop was flipped in the graph; a padded crop is made with the patches, flip and all.
        if view.crop == "pad" and view.pad:
            corner_B2 = self._on_device(integers(self.seed, Purpose.CROP, epoch_K, sample_K, 2, 2 * view.pad + 1))
        if view.crop == "pad" and view.flip:
            flip_B = self._on_device(self._flip(epoch_K, sample_K).bool())
        return Batch(
            view=view, pixels=self._on_device(pixels), epoch_B=self._on_device(epoch_K),
            sample_B=self._on_device(sample_K), labels_B=self._on_device(self._gatherer.labels(request)),
            corner_B2=corner_B2, flip_B=flip_B,
            # Only in the stream does another image stand in for a bad one.
            entry=request.asked[0] if request.substituted else None, refused=tuple(request.refused.values()),
        )  # fmt: skip

    def _flip(self, epoch_K: Tensor, sample_K: Tensor) -> Tensor:
        """0 or 1 a sample, int64 (K,)."""
        if not self.view.flip:
            return torch.zeros_like(sample_K)
        return integers(self.seed, Purpose.FLIP, epoch_K, sample_K, 1, 2)[:, 0]

    def _on_device(self, tensor: Tensor) -> Tensor:
        """A copy on the device, which is not waited for; ``tensor`` itself where it is there."""
        if tensor.device.type == self._device.type:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
