"""The loader by itself, for anybody's training loop: ``for images, labels in loader("imagenet", batch_size=256)``.

Shapes: B images of a batch in this process, H pixels a side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastselfie.config import require
from fastselfie.errors import UserError, one_line
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.decoders import choose_decoder
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.normalising import Normaliser
from fastselfie.pipelines.opening import open_pipeline
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.source import AnySplit, Split
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import Batch, View

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PAD_SHARE = 8  # of small images in memory: padded by an eighth of their side, 4 pixels of 32
_LOG = logging.getLogger("fastselfie")


class Loader:
    """Batches of images and labels; made by `loader`. Keeps no global state, and any number may run at once.

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
        self._iteration = 0
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
        """The next `len` batches. While training, iteration e has steps [e * len, (e + 1) * len) of `steps`."""
        first = 0 if self._plain else self._iteration * len(self)
        self._iteration += 1
        return self.steps(first, first + len(self))

    def steps(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of steps [start, stop), of a training view without end: to go on in the middle, begin there.

        A step is a function of its number and the seed: step k has images [k * batch_size, (k + 1) * batch_size) of the
        endless stream of shuffled epochs, in which no image is lost and none comes twice an epoch.

        Yields:
            images, (B, 3, H, H) channels-last on the device, normalised, or of dtype uint8 as they are; labels, int64
            (B,).

        Raises:
            UserError: more images cannot be used than ``max_bad_share`` allows.
        """
        if self._plain:
            requests = [self._entries(step) for step in range(start, stop)]
            batches = self._pipeline.in_order([request for request in requests if request[0] < request[1]])
            for first, last in requests:
                yield self._deliver(next(batches)) if first < last else self._nothing()
            return
        self._pipeline.announce(map(self._entries, range(start, stop)))
        for request in map(self._entries, range(start, stop)):
            yield self._deliver(self._pipeline.batch(*request))

    def _entries(self, step: int) -> tuple[int, int]:
        """This process's share of a step."""
        start = step * self._batch_size
        count = min(self._batch_size, self.images - start) if self._plain else self._batch_size
        edges = (start + count * rank // self._world_size for rank in (self._rank, self._rank + 1))
        first, last = islice(edges, 2)
        return first, last

    def _deliver(self, batch: Batch) -> tuple[Tensor, Tensor]:
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
        raw = self._dtype == torch.uint8
        if raw and not batch.moves:
            return batch.images().permute(0, 3, 1, 2)
        if self._normaliser and not batch.moves:
            return self._normaliser(batch.images())
        dtype = torch.float32 if raw else self._dtype
        images = batch.patches(patch=self._size, mean=self._mean, std=self._std, dtype=dtype)
        return images.round().to(torch.uint8) if raw else images

    def _nothing(self) -> tuple[Tensor, Tensor]:
        device = self._mean.device
        images = torch.empty((0, 3, self._size, self._size), dtype=self._dtype, device=device)
        return images, torch.empty(0, dtype=torch.int64, device=device)


def loader(
    data: str | Path, *, batch_size: int, split: Literal["train", "test"] = "train",
    view: Literal["train", "plain"] | None = None, size: int = 224, seed: int = 0, rank: int = 0, world_size: int = 1,
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, mean: Sequence[float] = _MEAN,
    std: Sequence[float] = _STD, threads: int | None = None, prefetch: int = 2, min_area: float = 0.08,
    max_bad_share: float = 0.01, index: str | Path | None = None,
    decoder: Literal["auto", "dali", "turbo"] = "auto",
) -> Loader:  # fmt: skip
    """Images and labels from anything that ``--data`` may name.

    Args:
        batch_size: images of a step over all processes; a multiple of ``world_size`` in training.
        view: ``train``, a random resized crop (of small images in memory a padded crop) and flip, shuffled, or
            ``plain``, the shorter side resized to 256/224 of ``size`` and the centre, in order and with a smaller last
            batch. By default that of the split.
        dtype: float32 or bfloat16, normalised by ``mean`` and ``std`` of pixels in [0, 1]; uint8: the pixels.
        threads: that read and as many that decode; None: this process's cores, by its control group.
        prefetch: batches decoded ahead. min_area: smallest share of the area that a random resized crop takes.
        max_bad_share: of the images that may turn out unusable before an error says so.
        decoder: DALI, or libjpeg-turbo on the CPU; their pixels are within a level of 255 but for a view's outermost
            ones. ``auto``: DALI for CUDA, libjpeg-turbo for a CPU where simplejpeg is installed.
        index: a folder in which the listing of the data is kept, so that the next start is quick.

    Raises:
        UserError: an argument makes no sense, or the data cannot be opened.
    """
    require(batch_size >= 1, f"batch_size {batch_size}: must be at least 1")
    require(0 <= rank < world_size, f"rank {rank}: must be at least 0 and below world_size {world_size}")
    require(split in ("train", "test"), f"split {split!r}: must be 'train' or 'test'")
    view = view or ("train" if split == "train" else "plain")
    require(view in ("train", "plain"), f"view {view!r}: must be 'train' or 'plain'")
    require(
        view == "plain" or batch_size % world_size == 0,
        f"batch_size {batch_size}: must be a multiple of world_size {world_size}",
    )
    require(dtype in (torch.float32, torch.bfloat16, torch.uint8), f"dtype {dtype}: must be float32, bfloat16 or uint8")
    require(decoder in ("auto", "dali", "turbo"), f"decoder {decoder!r}: must be 'auto', 'dali' or 'turbo'")
    require(prefetch >= 1, f"prefetch {prefetch}: must be at least 1")
    require(threads is None or threads >= 1, f"threads {threads}: must be at least 1")
    source, place = open_source(str(data), size, Path(index) if index is not None else None), torch.device(device)
    images = source.train if split == "train" else source.test
    if images is None:
        raise UserError(f"split: {source.name} has no val/ or test/; take split='train'")
    plain, count = view == "plain", len(images)
    require(
        plain or batch_size <= count,
        f"batch_size {batch_size}: there are only {count} images; take at most that many",
    )
    threads = threads or cores()
    pipeline = open_pipeline(
        images, view=_view(images, size, min_area, plain), seed=seed, device=place,
        loading=Loading(
            threads=threads, prefetch=prefetch, batch=-(-batch_size // world_size),
            decoder="dali" if isinstance(images, Split) else choose_decoder(decoder, place)[0],
        ),
    )  # fmt: skip
    return Loader(
        pipeline, images=count, classes=source.classes, plain=plain, batch_size=batch_size, size=size, rank=rank,
        world_size=world_size, device=place, dtype=dtype, mean=mean, std=std, max_bad_share=max_bad_share,
        threads=threads,
    )  # fmt: skip


def _view(images: AnySplit, size: int, min_area: float, plain: bool) -> View:
    if isinstance(images, Split):
        view = View(size=size, pad=size // _PAD_SHARE, flip=True)
    else:
        view = View(size=size, crop="resized", min_area=min_area, flip=True)
    return view.plain() if plain else view
