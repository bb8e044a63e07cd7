"""The loader by itself, for anybody's training loop: ``for images, labels in loader("imagenet", batch_size=256)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from fastselfie.config import IMAGENET_MEAN, IMAGENET_STD, require
from fastselfie.errors import UserError
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.batches import Loader
from fastselfie.pipelines.decoders import choose_decoder
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.opening import open_pipeline
from fastselfie.pipelines.source import AnySplit, ResidentSplit
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import View

_PAD_SHARE = 8  # of small images in memory: padded by an eighth of their side, 4 pixels of 32


def loader(
    data: str | Path, *, batch_size: int, split: Literal["train", "test"] = "train",
    view: Literal["train", "plain"] | None = None, size: int = 224, seed: int = 0, rank: int = 0, world_size: int = 1,
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD, threads: int | None = None, prefetch: int = 2, min_area: float = 0.08,
    max_bad_share: float = 0.01, index: str | Path | None = None,
    decoder: Literal["auto", "dali", "turbo"] = "auto",
) -> Loader:  # fmt: skip
    """Images and labels for a training loop, as an iterable with a length; see `Loader`.

    Args:
        data: what ``fastselfie pretrain --data`` takes: class folders or a flat folder, a list of files, packed shards,
            WebDataset tars, TFRecord or Parquet files, a URL of shards or tars, CIFAR-10, ``synthetic:4096``.
        batch_size: images of a step over all processes; a multiple of ``world_size`` in training.
        split: ``test`` is what lies in ``val/`` or ``test/``.
        view: ``train``, a random resized crop (of small images in memory a padded crop) and flip, shuffled, or
            ``plain``, the shorter side resized to 256/224 of ``size`` and the centre, in order and with a smaller last
            batch. By default that of the split.
        size: pixels a side. seed: decides order, crops and flips.
        rank, world_size: this process's, of those that share each batch. Nobody sets them for you: frameworks that make
            a DataLoader distributed leave another iterable as it is.
        device: where images and labels are to be.
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
    require(size >= 1, f"size {size}: must be at least 1")
    dtypes = torch.float32, torch.bfloat16, torch.uint8
    require(dtype in dtypes, f"dtype {dtype!r}: must be torch.float32, torch.bfloat16 or torch.uint8")
    require(len(mean) == 3 and all(0 <= m <= 1 for m in mean), f"mean {mean}: must be three numbers in [0, 1]")
    require(len(std) == 3 and all(s > 0 for s in std), f"std {std}: must be three numbers above 0")
    require(decoder in ("auto", "dali", "turbo"), f"decoder {decoder!r}: must be 'auto', 'dali' or 'turbo'")
    require(prefetch >= 1, f"prefetch {prefetch}: must be at least 1")
    require(threads is None or threads >= 1, f"threads {threads}: must be at least 1")
    require(0 < min_area <= 1, f"min_area {min_area}: must be above 0 and at most 1")
    require(0 <= max_bad_share <= 1, f"max_bad_share {max_bad_share}: must be at least 0 and at most 1")
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
            decoder="dali" if isinstance(images, ResidentSplit) else choose_decoder(decoder, place)[0],
        ),
    )  # fmt: skip
    return Loader(
        pipeline, images=count, classes=source.classes, plain=plain, batch_size=batch_size, size=size, rank=rank,
        world_size=world_size, device=place, dtype=dtype, mean=mean, std=std, max_bad_share=max_bad_share,
        threads=threads,
    )  # fmt: skip


def _view(images: AnySplit, size: int, min_area: float, plain: bool) -> View:
    if isinstance(images, ResidentSplit):
        view = View(size=size, pad=size // _PAD_SHARE, flip=True)
    else:
        view = View(size=size, crop="resized", min_area=min_area, flip=True)
    return view.plain() if plain else view
