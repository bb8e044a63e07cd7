"""Kernels inside the model: the same loss, gradients and curve as plain PyTorch's. Interpreted where there is no GPU.

Rounding grows fast in a fresh network: a run at the recipe's learning rate with another number of threads is 4% off
after three steps. So gradients are compared step by step along one run, and whole curves at a rate that keeps them
together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastselfie.config import PretrainConfig
from fastselfie.kernels import using
from fastselfie.kernels.dispatch import Kernels
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.source import ResidentSplit
from fastselfie.pipelines.synthetic import synthetic_source
from fastselfie.pipelines.view import Batch
from fastselfie.pretext.selfie import SelfieTask
from fastselfie.pretext.task import PixelFormat
from fastselfie.training.pretrain import pretrain
from tests.small_networks import assert_near

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS, BATCH = 3, 16
TINY: dict[str, Any] = {"recipe": "tiny", "width": 0.25, "batch_size": BATCH, "data": "synthetic:64", "held_out": 16}


def question(task: SelfieTask, kernels: Kernels, batch: Batch) -> tuple[Tensor, Tensor]:
    """The patches and places that the network is given."""
    given = []

    def forward(patches: Tensor, places_BN: Tensor) -> Any:
        given.append((patches, places_BN))
        return task.network(patches, places_BN)

    with using(kernels), torch.no_grad():
        task.loss(forward, batch)
    return given[0]


def gradients(network: Selfie, kernels: Kernels, patches: Tensor, places_BN: Tensor) -> dict[str, Tensor]:
    """The loss under the name of "loss", the batch statistics under "statistics", and every parameter's gradient."""
    with using(kernels):
        loss, _ = network(patches, places_BN)
        names, parameters = zip(*network.named_parameters(), strict=True)
        found = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    norm = network.trunk.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return {**found, "loss": loss.detach(), "statistics": torch.stack([norm.running_mean, norm.running_var]).clone()}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, STEPS), ({"positions": "query"}, 2), ({"pooler": "mean", "batch_size": 4}, 1),
        ({"pooler": "max", "positions": "query", "batch_size": 4}, 1), ({"pooler_depth": 0, "batch_size": 4}, 1),
    ],
)  # fmt: skip
def test_gradients_along_a_run(settings: dict[str, Any], steps: int) -> None:
    """At every step of a plain run, the same patches give the same loss, statistics and gradients."""
    config = PretrainConfig(**(TINY | settings), dropout=0.0)
    split = synthetic_source(32, train=64, test=16).train
    assert isinstance(split, ResidentSplit)
    torch.manual_seed(0)
    network = Selfie(config).to(DEVICE)
    task = SelfieTask(config, network, PixelFormat.of(config, DEVICE))
    network.trunk.norm.momentum = 1.0
    pipeline = ResidentPipeline(split, view=task.view, seed=0, device=DEVICE)
    for step in range(steps):
        batch = pipeline.batch(step * config.batch_size, (step + 1) * config.batch_size)
        patches, places_BN = question(task, "off", batch)
        fused_patches, fused_places_BN = question(task, "on", batch)
        assert_near(fused_patches, patches, 1e-6)
        assert torch.equal(fused_places_BN, places_BN)
        plain = gradients(network, "off", patches, places_BN)
        fused = gradients(network, "on", patches, places_BN)
        for name, expected in plain.items():
            assert_near(fused[name], expected, 1e-5, f"{step}: {name}")
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.sub_(0.1 * plain[name])


def curve(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_same_curve(tmp_path: Path) -> None:
    losses = {}
    for kernels in ("on", "off"):
        settings: dict[str, Any] = {
            **TINY, "kernels": kernels, "steps": STEPS, "log_every": 1, "lr": 1e-4, "evaluate_every": STEPS,
            "precision": "fp32", "compile": "off", "device": DEVICE.type, "out": tmp_path / kernels,
        }  # fmt: skip
        config = PretrainConfig(**settings)
        losses[kernels] = curve(pretrain(config))
    assert len(losses["on"]) == STEPS
    assert len(set(losses["on"])) == STEPS, "it trains"
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-3)
