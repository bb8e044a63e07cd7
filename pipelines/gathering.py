"""The bytes of a batch's images, and other images' in the place of those that cannot be used.

Shapes: B images asked for, K of them there in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.errors import LocalError
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.reading import Reader, Result
from fastselfie.pipelines.refusal import Refused, substitutes
from fastselfie.pipelines.rows import Rows
from fastselfie.pipelines.source import EncodedImages

_FORGIVEN = 8  # bad images of a batch that do not make one think of a disk that is gone


@dataclass(kw_only=True)
class Request:
    """A batch on its way.

    Attributes:
        asked: what was asked for. epoch_B, sample_B: int64 (B,), the keys of its images.
        substituted: whether another image takes the place of a bad one; else it is left out.
        reading: bytes to come, of a few images each. used: the image in each place. data: its bytes once they are
            there; None: left out.
        refused: images that could not be used, by name. left: substitutes that each place may still take.
    """

    asked: tuple[int, int]
    epoch_B: Tensor
    sample_B: Tensor
    substituted: bool
    reading: list[Future[list[Result]]]
    used: list[int]
    data: list[NDArray[np.uint8] | None] = field(default_factory=list)
    refused: dict[str, Refused] = field(default_factory=dict)
    left: dict[int, Iterator[int]] = field(default_factory=dict)

    def is_read(self) -> bool:
        """Whether `Gatherer.finish` would wait for no read that was begun."""
        return all(reading.done() for reading in self.reading)

    def there(self) -> list[int]:
        """The K places that have an image."""
        return [place for place, data in enumerate(self.data) if data is not None]

    def encoded(self) -> list[NDArray[np.uint8]]:
        """Their bytes."""
        return [data for data in self.data if data is not None]

    def keys(self) -> tuple[Tensor, Tensor]:
        """Their epochs and samples: int64 (K,) each."""
        there_K = torch.tensor(self.there(), dtype=torch.int64)
        return self.epoch_B[there_K], self.sample_B[there_K]

    def images(self) -> list[int]:
        """The image in each of them."""
        return [self.used[place] for place in self.there()]


class Gatherer:
    """Reads batches of ``images``, of which ``rows`` may stand in for one another."""

    def __init__(self, images: EncodedImages, rows: Rows, seed: int, threads: int) -> None:
        self._images, self._rows, self._seed = images, rows, seed
        self._reader = Reader(images, threads)

    def begin(self, asked: tuple[int, int], epoch_B: Tensor, sample_B: Tensor, substituted: bool) -> Request:
        """Begin to read a batch."""
        used = sample_B.tolist()
        return Request(
            asked=asked, epoch_B=epoch_B, sample_B=sample_B, substituted=substituted, used=used,
            reading=self._reader.submit(used),
        )  # fmt: skip

    def finish(self, request: Request) -> None:
        """Wait for the bytes of ``request``.

        Raises:
            LocalError: so many images cannot be used that something else must be wrong.
        """
        results = [result for reading in request.reading for result in reading.result()]
        request.data = [None if isinstance(result, BadImage) else result for result in results]
        bad = {place: str(result) for place, result in enumerate(results) if isinstance(result, BadImage)}
        for place, reason in bad.items():  # all, before others are tried in their place: is the storage gone?
            self._note(request, place, reason)
        if bad and self._reader.lost:
            raise LocalError(self._too_many(request))
        for place, reason in bad.items():
            self.refuse(request, place, reason)

    def labels(self, request: Request) -> Tensor:
        """Of the images of ``request``: int64 (K,).

        Raises:
            LocalError: they cannot be read.
        """
        used = request.images()
        try:
            return torch.from_numpy(self._images.labels(used))
        except OSError as error:
            raise LocalError(
                f"{self._images.name(used[0])}: its label cannot be read ({error.strerror or error}): see to it that"
                " the index is there and run the same command again"
            ) from None

    def refuse(self, request: Request, place: int, reason: str) -> None:
        """Put another image into ``place``, whose image cannot be used, or leave it out.

        Raises:
            LocalError: see `finish`.
        """
        request.data[place] = None
        self._note(request, place, reason)
        if not request.substituted:
            return
        if place not in request.left:
            epoch, sample = int(request.epoch_B[place]), int(request.sample_B[place])
            request.left[place] = substitutes(self._seed, epoch, sample, self._rows)
        for index in request.left[place]:
            request.used[place] = index
            try:
                request.data[place] = self._reader.read(index)
                return
            except BadImage as error:
                self._note(request, place, str(error))
        raise LocalError(self._too_many(request))

    def _note(self, request: Request, place: int, reason: str) -> None:
        name = self._images.name(request.used[place])
        request.refused[name] = Refused(name=name, reason=reason)
        if len(request.refused) > max(len(request.used) // 2, _FORGIVEN):
            raise LocalError(self._too_many(request))

    def _too_many(self, request: Request) -> str:
        first = next(iter(request.refused.values()))
        return (
            f"{first.name}: {first.reason}, and so it is with {len(request.refused) - 1} more for a batch of"
            f" {len(request.used)}: see to it that the images are there and run the same command again"
        )
