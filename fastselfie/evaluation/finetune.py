"""Finetuning on labels (paper, sections 2.3 and 4.2), from a pretrained run or from scratch, to a test accuracy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from torch import Tensor

from fastselfie.config import RESNET50, FinetuneConfig, require
from fastselfie.evaluation.classify import LOSS_UNIT, ClassifyTask
from fastselfie.evaluation.labels import Judged, divide
from fastselfie.evaluation.pretrained import Pretrained, read_pretrained, read_settings
from fastselfie.evaluation.subsets import write_subset
from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier, encoder
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.view import View
from fastselfie.pretext.task import PixelFormat
from fastselfie.training.data import fits, open_data, pipeline_over, with_decoder
from fastselfie.training.job import Evaluation, Job, micro_batch_size
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.session import count_over, make_network, run, session
from fastselfie.training.starting_point import TRUNK_ALONE, StartingPoint, read_starting_point
from fastselfie.training.weights_header import is_weights_file
from fastselfie.training.world import World

_EVALUATION_CHUNK = 500
SUBSET = "labelled.txt"


def finetune(config: FinetuneConfig) -> Path:
    """Finetune and test, or go on with a half-done run.

    Returns:
        The run's folder; ``result.json`` in it holds ``test_accuracy`` and ``test_loss``, or where labels are held back
        ``validation_accuracy`` and ``validation_loss``; ``labelled.txt`` the indices trained on.

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
        pretrained = _weights(config)
        source = open_data(config, world)
        config, how = with_decoder(config, source, View.of(config, 1), world)
        rows, judged = divide(config, source)
        fits(config, len(rows))
        facts = {
            "images": world.in_main(source.fingerprint), "contents": world.in_main(source.probes),
            "weights": pretrained.fingerprint if pretrained else None,
        }  # fmt: skip
        summary = {
            "data": source.name, "labels": config.labels, "labelled_images": len(rows), "label_seed": config.label_seed,
            "encoder": config.encoder, "pretrained": not config.scratch, f"{judged.name}_images": len(judged.rows),
        }  # fmt: skip
        job = finetuning_job(config, world, source, judged, rows, pretrained)
        return run(
            job,
            here,
            command="finetune",
            images=_told(source, rows, judged) + how + _told_start(config, pretrained, source),
            facts=facts,
            summary=summary,
            prepare=lambda folder: write_subset(folder / SUBSET, rows),
        )


def _told(source: Source, rows: Tensor, judged: Judged) -> str:
    """For the user: how many images there are for what."""
    absent = len(source.classes) - len(set(judged.split.labels_S[judged.rows.numpy()].tolist()))
    gap = f" ({absent} of {len(source.classes)} classes have none)" if absent else ""
    what = "to test on" if judged.name == "test" else "held back to judge by"
    return f"data {source.name}: {len(rows)} labelled images to train on, {len(judged.rows)} {what}{gap}"


def _weights(config: FinetuneConfig) -> Pretrained | StartingPoint | None:
    """What ``--from`` names: a run, or a file of weights; None from scratch."""
    if config.pretrained is None:
        return None
    read = read_starting_point if is_weights_file(config.pretrained) else read_pretrained
    return read(config, config.pretrained)


def _told_start(config: FinetuneConfig, start: Pretrained | StartingPoint | None, source: Source) -> str:
    """For the user: what is taken of a file of weights."""
    if not isinstance(start, StartingPoint):
        return ""
    if config.encoder != RESNET50:
        return start.told(TRUNK_ALONE)
    same = start.classes == len(source.classes)
    return start.told("all weights" if same else "all weights but a classifier, which is fresh")


def _positions(config: FinetuneConfig) -> Literal["both", "query"]:
    """Where position vectors are added: as asked, else as in pretraining, else to the features too."""
    if config.positions is None and config.pretrained is not None and not is_weights_file(config.pretrained):
        return "query" if read_settings(config.pretrained)["positions"] == "query" else "both"
    return config.positions or "both"


def finetuning_job(
    config: FinetuneConfig, world: World, source: Source, judged: Judged, rows: Tensor,
    pretrained: Pretrained | StartingPoint | None,
) -> Job:  # fmt: skip
    """The encoder, its task, and pipelines over the labelled rows and over what the run is judged by."""

    def make() -> ResNet50Classifier | AttentionClassifier:
        network = encoder(config, len(source.classes))
        if pretrained is not None:
            pretrained.load_into(network)
        return network

    network = make_network(make, config, world)
    task = ClassifyTask(config, network, PixelFormat.of(config, world.device))
    pipeline = pipeline_over(config, world, source.train, rows, task.view, micro_batch_size(config, world))
    plain = pipeline_over(config, world, judged.split, judged.rows, task.view.plain(), _EVALUATION_CHUNK)
    quarantine = Quarantine(len(rows) + len(judged.rows), config.max_bad_share)

    def evaluate() -> dict[str, float]:
        counts = count_over(world, plain, len(judged.rows), _EVALUATION_CHUNK, 3, task.counts, quarantine)
        right, loss, images = counts.tolist()
        fewer = {"tested_images": images} if images < len(judged.rows) else {}  # bad ones are left out
        figures = {"accuracy": right / images, "loss": loss * LOSS_UNIT / images}
        return {f"{judged.name}_{figure}": value for figure, value in figures.items()} | fewer

    evaluation = Evaluation(every=config.evaluate_every, measure=evaluate)
    return Job(config=config, task=task, pipeline=pipeline, quarantine=quarantine, evaluations=(evaluation,))
