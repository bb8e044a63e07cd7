"""The whole machinery can learn: sixteen pictures, seen again and again with the same masks, are learned by heart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastselfie.models.convolution import channels_last
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.source import Split
from fastselfie.pipelines.synthetic import render_scenes
from fastselfie.pretext.selfie import SelfieTask
from fastselfie.pretext.task import PixelFormat
from fastselfie.recipes import recipe
from fastselfie.training.optimizer import make_optimizer
from tests.small_networks import SETTINGS

IMAGES = 16
STEPS = 100


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_sixteen_images_are_learned_by_heart(settings: dict[str, Any]) -> None:
    """Loss below 0.1 (chance: ln 4 = 1.39 and ln 12 = 2.48) with dropout, 32 heads and a constant rate; D = 128.

    When written: 19 steps for the 4x4 grid, 45 for 7x7.
    """
    pad = 4 if settings["image_size"] == 32 else 0  # as in the recipes
    config = replace(recipe("tiny").pretrain, **settings, pad=pad, width=1 / 8, batch_size=IMAGES, lr=0.2)
    assert (config.dropout, config.heads, config.keep) == (0.1, 32, 0.75)
    torch.manual_seed(0)
    network = Selfie(config)
    channels_last(network)
    device = torch.device("cpu")
    task = SelfieTask(config, network, PixelFormat.of(config, device, torch.float32))
    images, labels = render_scenes(seed=0, first=0, count=IMAGES, size=config.image_size)
    pipeline = ResidentPipeline(Split(images_SHW3=images, labels_S=labels), view=task.view, seed=0, device=device)
    batch = pipeline.batch(0, IMAGES)
    optimizer = make_optimizer(network, config)
    losses: list[float] = []
    while not losses or (losses[-1] >= 0.1 and len(losses) <= STEPS):
        loss = task.loss(network, batch)
        losses.append(loss.value.item())
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    print(f"{config.grid}x{config.grid} patches: loss {losses[-1]:.3f} after {len(losses) - 1} steps")
    assert losses[0] > 1
    assert losses[-1] < 0.1
    assert loss.metrics["accuracy"] > 0.95
