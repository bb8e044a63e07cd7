"""A run's images: opened, counted, and how they are loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from fastselfie.config import RunConfig, flag, require
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.decoders import DecoderName, choose_decoder
from fastselfie.pipelines.footprint import footprint
from fastselfie.pipelines.gpu_decoding import HARDWARE_SHARE, choose_regions, gpu_decoding
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.opening import open_pipeline
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.rows import Rows
from fastselfie.pipelines.source import AnySplit, EncodedImages, Source
from fastselfie.pipelines.sources import fetch, open_source
from fastselfie.pipelines.view import View
from fastselfie.training.job import micro_batch_size
from fastselfie.training.world import World

C = TypeVar("C", bound=RunConfig)


def open_data(config: RunConfig, world: World) -> Source:
    """The images that ``--data`` names; a download happens once on each machine, not in every process.

    Raises:
        UserError: see `open_source`.
    """
    if world.local_rank == 0:
        fetch(config.data, config.image_size)
    world.barrier()
    return open_source(config.data, config.image_size, index_folder(config))


def index_folder(config: RunConfig) -> Path:
    """Where listings of the data are kept: as asked, or beside the run."""
    assert config.out is not None
    return config.index or config.out.parent / ".index"


def with_decoder(config: C, source: Source, view: View, world: World) -> tuple[C, str]:
    """``config`` with the decoder that the images of ``source`` need; of images in memory as it was.

    Returns:
        Also lines for the user, in the main process: on the decoder, on the memory that loading takes, and what is to
        be known of the data.

    Raises:
        UserError: it is not installed; or something is asked for that is not used, see `check_loading`.
    """
    check_loading(config, source)
    if not isinstance(source.train, EncodedImages):
        return config, ""
    name, why = choose_decoder(config.decoder, world.device)
    on_gpu = name == "dali" and world.device.type == "cuda"
    _check_gpu_decoding(config, used=on_gpu)
    config, regions = dataclasses.replace(config, decoder=name), ""
    if on_gpu and view.crop == "resized":
        some, why_so = choose_regions(config.region_decoding)
        config = dataclasses.replace(config, region_decoding="on" if some else "off")
        regions = f" of {'crops alone' if some else 'whole images'} ({why_so})"
    if not world.is_main:
        return config, ""
    how = loading(config, world, micro_batch_size(config, world))
    takes = footprint(source.train, view, how, world.device, kept=world.device.type == "cpu")
    remark = f"\n{source.name}: {source.remark}" if source.remark else ""
    by = f"loading by {how.threads} threads, decoder {name} ({why}){regions}"
    return config, f"{remark}\n{by}, takes up to {takes.told()}"


def check_loading(config: RunConfig, source: Source) -> None:
    """Refuse settings of how files are loaded where ``source`` has all images in memory.

    Raises:
        UserError: names the first.
    """
    if isinstance(source.train, EncodedImages):
        return
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    names = "loader_threads", "prefetch", "decoder", "hardware_share", "region_decoding", "index", "max_bad_share"
    for name in names:
        value = getattr(config, name)
        require(
            value == defaults[name],
            f"{flag(name)} {value}: has no effect, the images of {source.name} lie in memory and none is decoded;"
            " leave it out",
        )


def _check_gpu_decoding(config: RunConfig, used: bool) -> None:
    for name, default in (("hardware_share", None), ("region_decoding", "auto")):
        value = getattr(config, name)
        require(
            used or value == default,
            f"{flag(name)} {value}: is for DALI's decoder on a GPU, which is not used here; leave it out",
        )


def fits(config: RunConfig, images: int) -> None:
    """Refuse a batch that is larger than the ``images`` there are.

    Raises:
        UserError: it is.
    """
    require(
        config.batch_size <= images,
        f"--batch-size {config.batch_size}: there are only {images} images to train on; take at most that many",
    )


def pipeline_over(
    config: RunConfig, world: World, split: AnySplit, rows: Rows, view: View, batch: int
) -> Pipeline:  # fmt: skip
    """This process's pipeline of ``view`` over the images ``rows`` of ``split``, ``batch`` at a time at most."""
    how = loading(config, world, batch)
    return open_pipeline(split, view=view, seed=config.seed, device=world.device, rows=rows, loading=how)


def loading(config: RunConfig, world: World, batch: int) -> Loading:
    """How this process loads files, ``batch`` images at a time at most."""
    threads = config.loader_threads or max(1, cores() // world.local_size)
    decoder: DecoderName = "turbo" if config.decoder == "turbo" else "dali"
    share = config.hardware_share
    if share is None:
        share = 0.0 if config.deterministic else HARDWARE_SHARE
    gpu = gpu_decoding(config.region_decoding, share)
    return Loading(threads=threads, prefetch=config.prefetch, batch=batch, decoder=decoder, gpu=gpu)
