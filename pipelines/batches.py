"""The class of `fastselfie.pipelines.loader`: what is handed to a training loop, and how often.

Shapes: B images of a batch in this process, H pixels a side.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from fastselfie.config import require
from fastselfie.errors import UserError, one_line
from fastselfie.pipelines.normalising import Normaliser
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.view import Batch

_LOG = logging.getLogger("fastselfie")


class Loader:
    """Batches of images and labels; made by `loader`. Keeps no global state, and any number may run at once.

    It works in the process that made it, in any thread. Several iterations of one loader may run in turns, and each has
    its own batches, but only one of them has batches decoded ahead.

    Attributes:
        images: how many there are. classes: their names, empty where images have no labels.
        refused: why images that were met could not be used, by name; others stand in for them while training, and they
            are missing from a plain view.
    """

    def __init__(
        self, pipeline: Pipeline, *, images: int, classes: tuple[str, ...], plain: bool, batch_size: int, size: int,
        rank: int, world_size: int, device: torch.device, dtype: torch.dtype, mean: Sequence[float],
        std: Sequence[float], max_bad_share: float, threads: int,
    ) -> None:  # fmt: skip
        self.images, self.classes, self.refused = images, classes, dict[str, str]()
        self._pipeline, self._plain, self._batch_size, self._size = pipeline, plain, batch_size, size
        self._rank, self._world_size, self._dtype, self._max_bad_share = rank, world_size, dtype, max_bad_share
        self._next = self._done = 0  # the step that the next iteration begins with, and the steps up to now
        self._process, self._lock, self._warned = os.getpid(), Lock(), False
        raw = dtype == torch.uint8
        self._mean = torch.tensor([0.0] * 3 if raw else list(mean), device=device)
        self._std = torch.tensor([1 / 255] * 3 if raw else list(std), device=device)
        self._normaliser = None
        if device.type == "cpu" and not raw:
            self._normaliser = Normaliser(size=size, mean=self._mean, std=self._std, dtype=dtype, threads=threads)

    def __len__(self) -> int:
        """Batches of one iteration, the same in every process."""
        return -(-self.images // self._batch_size) if self._plain else self.images // self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The next `len` batches. While training, iteration e has steps [e * len, (e + 1) * len) of `steps`.

        An iteration is counted from its first batch on; one that is left early has had all its steps.
        """
        if self._plain:
            yield from self.steps(0, len(self))
            return
        start = self._next
        stop = self._next = (start // len(self) + 1) * len(self)
        for batch in self.steps(start, stop):
            start = self._done = start + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How far the iterations of a training view have come, as a checkpoint keeps it."""
        return {"step": self._done}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on where another loader of the same data, seed and batch size was, in any number of processes.

        The next iteration has what was left of the one under way; where nothing was left, it is the one after.
        """
        self._next = self._done = state_dict["step"]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Loader has threads and batches under way, so it can be neither pickled nor copied: call loader(...) in"
            " the process that uses it, with its rank"
        )

    def steps(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of steps [start, stop), of a training view without end: to go on in the middle, begin there.

        A step is a function of its number and the seed: step k has images [k * batch_size, (k + 1) * batch_size) of the
        endless stream of shuffled epochs, in which no image is lost and none comes twice an epoch.

        Yields:
            images, (B, 3, H, H) channels-last on the device, normalised, or of dtype uint8 as they are; labels, int64
            (B,), all 0 where images have none.

        Raises:
            UserError: ``start`` is negative, the loader was made in another process, or more images cannot be used than
                ``max_bad_share`` allows.
        """
        require(start >= 0, f"start {start}: must be at least 0")
        self._check_process()
        requests = map(self._entries, range(start, stop))
        if self._plain:
            shares = [range(*request) for request in requests]
            batches = self._pipeline.in_order([(share.start, share.stop) for share in shares if share])
            for share in shares:
                yield self._take(partial(next, batches)) if share else self._nothing()
            return
        with self._lock:
            self._pipeline.announce(map(self._entries, range(start, stop)))
        for request in requests:
            yield self._take(partial(self._pipeline.batch, *request))

    def _check_process(self) -> None:
        """Where batches would be waited for in vain, or come more often than meant."""
        if os.getpid() != self._process:
            raise UserError(
                f"this loader was made in another process ({self._process}), whose threads do its work: call"
                " loader(...) in the process that uses it; a torch DataLoader around it works with num_workers=0"
            )
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self._world_size == 1 < processes and not self._plain and not self._warned:
            self._warned = True
            _LOG.warning(
                "world_size 1: each of %d processes trains on the same images; to share them out give loader(...,"
                " rank=%d, world_size=%d)", processes, dist.get_rank(), processes,
            )  # fmt: skip

    def _entries(self, step: int) -> tuple[int, int]:
        """This process's share of a step: entries [start, stop), none where the last plain batch is too small."""
        first = step * self._batch_size
        count = min(self._batch_size, self.images - first) if self._plain else self._batch_size
        start, stop = (first + count * rank // self._world_size for rank in (self._rank, self._rank + 1))
        return start, stop

    def _take(self, batch: Callable[[], Batch]) -> tuple[Tensor, Tensor]:
        """What `steps` yields for the pipeline's next batch."""
        with self._lock:  # the pipeline's order of batches is one thread's at a time
            return self._deliver(batch())

    def _deliver(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `steps` yields for ``batch``; its refused images are written down."""
        for image in batch.refused:
            if image.name not in self.refused:
                self.refused[image.name] = image.reason
                _LOG.warning("%s: %s; it is not used", one_line(image.name), image.reason)
        if len(self.refused) > self._max_bad_share * self.images:
            name, reason = next(iter(self.refused.items()))
            raise UserError(
                f"max_bad_share {self._max_bad_share}: {len(self.refused)} of {self.images} images cannot be used (the"
                f" first: {name} {reason}); mend them or allow a larger share"
            )
        return self._images(batch), batch.labels_B

    def _images(self, batch: Batch) -> Tensor:
        """As `steps` has them, by the quickest way for what is still to be done with the pixels."""
        raw = self._dtype == torch.uint8
        if raw and not batch.moves:
            return batch.images().permute(0, 3, 1, 2)
        if self._normaliser and not batch.moves:
            return self._normaliser(batch.images())
        dtype = torch.float32 if raw else self._dtype
        images = batch.patches(patch=self._size, mean=self._mean, std=self._std, dtype=dtype)
        return images.round().to(torch.uint8) if raw else images

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """A batch of 0 images."""
        device = self._mean.device
        images = torch.empty((0, 3, self._size, self._size), dtype=self._dtype, device=device)
        return images, torch.empty(0, dtype=torch.int64, device=device)
