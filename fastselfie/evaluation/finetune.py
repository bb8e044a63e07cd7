"""Finetuning on labels (paper, sections 2.3 and 4.2), from a pretrained run or from scratch, to a test accuracy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastselfie.config import FinetuneConfig, label_share, require
from fastselfie.errors import UserError
from fastselfie.evaluation.classify import ClassifyTask
from fastselfie.evaluation.pretrained import Pretrained, read_pretrained, read_settings
from fastselfie.evaluation.subsets import labelled_subset, write_subset
from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier, encoder
from fastselfie.pipelines.opening import open_pipeline
from fastselfie.pipelines.source import AnySplit, Source
from fastselfie.pipelines.view import View
from fastselfie.pretext.task import PixelFormat
from fastselfie.training.data import fits, loading, open_data, with_decoder
from fastselfie.training.job import Job, micro_batch_size
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.session import count_over, make_network, run, session
from fastselfie.training.world import World

_EVALUATION_CHUNK = 500
SUBSET = "labelled.txt"


def finetune(config: FinetuneConfig) -> Path:
    """Finetune and test, or go on with a half-done run.

    Returns:
        The run's folder; ``result.json`` in it holds ``test_accuracy``, ``labelled.txt`` the indices trained on.

    Raises:
        UserError: see `fastselfie.errors`. Stopped: a signal ended the run; its state is saved.
    """
    require(
        config.scratch or config.pretrained is not None,
        "--from RUN or --scratch: give one, a pretraining run to start from or fresh weights",
    )
    start = "scratch" if config.scratch else "pretrained"
    name = f"{config.recipe}-finetune-{config.encoder}-{config.labels.rstrip('%')}-{start}"
    config = dataclasses.replace(config, out=config.out or Path("runs") / name, positions=_positions(config))
    with session(config) as here:
        config, world = here.config, here.world
        pretrained = read_pretrained(config, config.pretrained) if config.pretrained else None
        source = open_data(config, world)
        config, how = with_decoder(config, source, View.of(config, 1), world)
        test = labelled_test(source)
        rows = labelled_subset(torch.from_numpy(source.train.labels_S), label_share(config.labels), config.label_seed)
        fits(config, len(rows))
        facts = {
            "images": world.in_main(source.fingerprint), "contents": world.in_main(source.probes),
            "weights": pretrained.fingerprint if pretrained else None,
        }  # fmt: skip
        summary = {
            "data": source.name, "labels": config.labels, "labelled_images": len(rows), "label_seed": config.label_seed,
            "encoder": config.encoder, "pretrained": not config.scratch, "test_images": len(test),
        }  # fmt: skip
        job = finetuning_job(config, world, source, test, rows, pretrained)
        return run(
            job,
            here,
            command="finetune",
            images=_told(source, rows, test) + how,
            facts=facts,
            summary=summary,
            prepare=lambda folder: write_subset(folder / SUBSET, rows),
        )


def _told(source: Source, rows: Tensor, test: AnySplit) -> str:
    """For the user: how many images there are for what."""
    absent = len(source.classes) - len(set(test.labels_S.tolist()))
    gap = f" ({absent} of {len(source.classes)} classes have none)" if absent else ""
    return f"data {source.name}: {len(rows)} labelled images to train on, {len(test)} to test on{gap}"


def _positions(config: FinetuneConfig) -> Literal["both", "query"]:
    """Where position vectors are added: as asked, else as in pretraining, else to the features too."""
    if config.positions is None and config.pretrained is not None:
        return "query" if read_settings(config.pretrained).get("positions") == "query" else "both"
    return config.positions or "both"


def labelled_test(source: Source, work: str = "finetuning") -> AnySplit:
    """The split to test on; ``work`` says for what.

    Raises:
        UserError: the source has no labels or no test images.
    """
    require(
        bool(source.classes),
        f"--data: the images of {source.name} have no labels; {work} needs class folders in train/ and val/",
    )
    if source.test is None:
        raise UserError(f"--data: {source.name} has no val/ or test/ to test on; add one with the same class folders")
    return source.test


def finetuning_job(
    config: FinetuneConfig, world: World, source: Source, test: AnySplit, rows: Tensor, pretrained: Pretrained | None
) -> Job:
    """The encoder, its task, and pipelines over the labelled rows and over the whole test split."""

    def make() -> ResNet50Classifier | AttentionClassifier:
        network = encoder(config, len(source.classes))
        if pretrained is not None:
            network.load_pretrained(pretrained.weights)
        return network

    network = make_network(make, config, world)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    task = ClassifyTask(config, network, PixelFormat.of(config, world.device, dtype))
    pipeline = open_pipeline(
        source.train, view=task.view, seed=config.seed, device=world.device, rows=rows,
        loading=loading(config, world, micro_batch_size(config, world)),
    )  # fmt: skip
    plain = open_pipeline(
        test, view=task.view.plain(), seed=config.seed, device=world.device,
        loading=loading(config, world, _EVALUATION_CHUNK),
    )  # fmt: skip

    quarantine = Quarantine(len(rows) + len(test), config.max_bad_share)

    def evaluate() -> dict[str, float]:
        counts = count_over(world, plain, len(test), _EVALUATION_CHUNK, 2, task.counts, quarantine)
        right, images = counts.tolist()
        fewer = {"tested_images": images} if images < len(test) else {}  # bad ones are left out
        return {"test_accuracy": right / images} | fewer

    return Job(config=config, task=task, pipeline=pipeline, evaluate=evaluate, quarantine=quarantine)
