"""Classifiers on the features of a frozen network: what pretraining has learnt, without any finetuning.

Beside the pretrained network an untrained one of the same shape and seed, whose batch norms get statistics of patches
as pretraining's have them. The kinds of features are told in `fastselfie.training.features`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import scipy
import torch
from torch import Tensor

from fastselfie.config import PretrainConfig, label_share, require
from fastselfie.errors import LocalError
from fastselfie.evaluation.finetune import SUBSET
from fastselfie.evaluation.frozen import frozen_network, frozen_settings, weights_after
from fastselfie.evaluation.labels import labelled_test
from fastselfie.evaluation.linear import FITS, check_labels, linear_probe
from fastselfie.evaluation.probe_config import ProbeConfig
from fastselfie.evaluation.probe_features import ProbedImages
from fastselfie.evaluation.probe_table import show
from fastselfie.evaluation.subsets import labelled_subset, write_subset
from fastselfie.files import replace_json
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.view import View
from fastselfie.progress import meter
from fastselfie.training.data import open_data, with_decoder
from fastselfie.training.features import Features
from fastselfie.training.neighbours import nearest_classes
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.reporter import say
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.session import RESULT, Session, session
from fastselfie.training.versions import versions


def probe(config: ProbeConfig) -> Path:
    """Probe a pretraining run, or say that this is done; prints a table.

    Returns:
        The folder. ``result.json`` in it holds ``step`` and ``probes``: a list of objects with ``network`` (pretrained
        or fresh), ``features``, ``size``, and the test accuracies ``linear`` and ``knn``, null where not asked for.

    Raises:
        UserError: see `fastselfie.errors`.
    """
    path, out = config.pretrained, config.out or Path("runs") / f"{config.recipe}-probe"
    require(path is not None, "--from RUN: name the pretraining run whose network is looked at")
    assert path is not None
    config = dataclasses.replace(config, out=out)
    with session(frozen_settings(config, path)) as here:
        require(here.world.size == 1, "fastselfie probe: works in one process; start it without torchrun")
        weights, step = weights_after(path, here.config, config.checkpoint)
        network = frozen_network(here.config, here.world, weights)
        images, source, how = _images(config, here)
        facts = {"images": source.fingerprint(), "contents": source.probes(), "weights": weights.fingerprint}
        resolved = {name: getattr(images.run, name) for name in ("device", "precision", "kernels", "decoder")}
        folder = RunFolder(out)
        folder.claim(dataclasses.replace(config, **resolved), "probe", facts)
        if (out / RESULT).exists():
            say(f"{out}: already done; its figures are in {RESULT}")
            show(json.loads((out / RESULT).read_text()))
            return out
        about = {
            "recipe": config.recipe, "pretrained": str(path), "step": step, "seed": images.run.seed,
            "data": source.name, "labels": config.labels, "label_seed": config.label_seed,
            "labelled_images": len(images.rows), "classes": len(source.classes),
        }  # fmt: skip
        with folder.locked(here.world):
            say(f"data {source.name}: {len(images.rows)} labelled images, {len(images.test)} to test on{how}")
            used = ", ".join(f"{name} {resolved[name]}" for name in ("device", "precision", "kernels"))
            say(f"using {used}; features take {images.features_mib(network):,.0f} MiB of memory")
            write_subset(out / SUBSET, images.rows)
            made_by = versions() | {"scipy": scipy.__version__}
            result = about | _probed(config, images, network, step) | {"made_by": made_by}
            replace_json(out / RESULT, result)
    show(result)
    say(f"{out}: done")
    return out


def _images(config: ProbeConfig, here: Session[PretrainConfig]) -> tuple[ProbedImages, Source, str]:
    """What is looked at, its source, and a line for the user on how it is loaded."""
    source = open_data(here.config, here.world)
    run, how = with_decoder(here.config, source, View.of(here.config, here.config.grid).plain(), here.world)
    test, labels_S = labelled_test(source, "probing"), torch.from_numpy(source.train.labels_S)
    rows = labelled_subset(labels_S, label_share(config.labels), config.label_seed)
    _check(config, labels_S[rows])
    quarantine = Quarantine(len(rows) + len(test), config.max_bad_share)
    images = ProbedImages(
        run=run, world=here.world, train=source.train, rows=rows, test=test, quarantine=quarantine
    )  # fmt: skip
    return images, source, how


def _check(config: ProbeConfig, labels_n: Tensor) -> None:
    """Refuse what the classifiers cannot do with these labels."""
    require(len(labels_n.unique()) > 1, "--data: all labelled images are of one class, and there is nothing to tell")
    require(
        not config.knn or config.neighbours <= len(labels_n),
        f"--neighbours {config.neighbours}: there are only {len(labels_n)} labelled images; take at most that many",
    )
    if config.linear:
        check_labels(labels_n, config.labels)


def _probed(config: ProbeConfig, images: ProbedImages, pretrained: Selfie, step: int) -> dict[str, Any]:
    """Figures of the networks that are asked for, one after the other: of many images, features are many GB."""
    assert config.out is not None
    images.quarantine.restore(images.world, config.out, -1)  # what a probe that was killed met will be met again
    probes: list[dict[str, Any]] = []
    about: dict[str, Any] = {"knn_neighbours": config.neighbours, "temperature": config.temperature}
    for name in ("pretrained", "fresh") if config.fresh else ("pretrained",):
        started = time.perf_counter()
        network = pretrained if name == "pretrained" else frozen_network(images.run, images.world, None)
        train, test = _features(config, images, network, name == "fresh", step)
        seconds = time.perf_counter() - started
        say(f"{config.out}: features of the {name} network in {seconds:.0f} s")
        about |= {"tested_images": len(test.labels_S), f"{name}_features_s": round(seconds, 1)}
        about["most_frequent_class"] = float(test.labels_S.bincount().max()) / len(test.labels_S)
        try:
            probes += [{"network": name, **_classified(config, kind, train, test, images)} for kind in train.values]
        except torch.OutOfMemoryError:
            raise LocalError(
                f"--labels {config.labels}: features of {len(images.rows)} images, and what is computed of them, do not"
                " fit into the device's memory; take a smaller share, or --device cpu, and another --out"
            ) from None
        del train, test
    return {**about, "probes": probes}


def _features(
    config: ProbeConfig, images: ProbedImages, network: Selfie, fresh: bool, step: int
) -> tuple[Features, Features]:
    """Of the labelled images and of the test images; bad ones are named."""
    assert config.out is not None
    try:
        found = images.features(network, patch_statistics=fresh)
    except torch.OutOfMemoryError:
        raise LocalError(
            f"--batch-size {config.batch_size}: does not fit into the device's memory; take a smaller one and"
            " another --out"
        ) from None
    images.quarantine.settle(images.world, config.out, step)
    images.quarantine.check()
    return found


def _classified(
    config: ProbeConfig, kind: str, train: Features, test: Features, images: ProbedImages
) -> dict[str, Any]:
    """Test accuracies of the classifiers on one kind of features."""
    known_SD, asked_TD = train.values[kind], test.values[kind]
    found: dict[str, Any] = {"features": kind, "size": known_SD.shape[1], "linear": None, "knn": None}
    device = images.world.device
    if config.linear:
        started = time.perf_counter()
        with meter(f"linear classifiers on {kind}", FITS) as done:
            linear = linear_probe(
                known_SD, train.labels_S, asked_TD, test.labels_S, config.label_seed, device, done.advance
            )
        found |= {
            "linear": linear.accuracy, "c": linear.c, "validation_accuracy": linear.validation_accuracy,
            "converged": linear.converged, "linear_s": round(time.perf_counter() - started, 1),
        }  # fmt: skip
    if config.knn:
        started = time.perf_counter()
        chosen_T = nearest_classes(
            asked_TD.to(device), known_SD.to(device), train.labels_S.to(device), k=config.neighbours,
            temperature=config.temperature,
        ).cpu()  # fmt: skip
        right = (chosen_T == test.labels_S).double().mean().item()
        found |= {"knn": right, "knn_s": round(time.perf_counter() - started, 1)}
    return found
