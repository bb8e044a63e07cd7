"""An evaluation: the network on held-out images, without gradients, by its running statistics. Training never compiles
it, so neither side is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.baselines.steps import plain_network, question
from bench.report.machine import Machine
from bench.report.parts import Compiler, autocast, sides_of
from bench.report.rows import Row
from bench.report.settings import Bench
from bench.report.sides import Step, measure
from bench.report.whole_step import COMPILED, COMPILED_FUSED, COMPILED_PLAIN
from fastselfie.models.convolution import channels_last
from fastselfie.models.selfie import Selfie

SECTION = "evaluation"


def evaluation(bench: Bench, machine: Machine) -> list[Row]:
    """Forward from patches to the loss and the right answers."""
    config = bench.config

    def ours(_: Compiler) -> Step:
        network = Selfie(config).to(bench.device)
        channels_last(network)
        return _forward(network, bench, config.precision, torch.channels_last)

    def plain(dtype: str, _: Compiler) -> Step:
        layout = torch.channels_last if dtype == "bf16" else torch.contiguous_format
        network = plain_network(config, bench.device).to(memory_format=layout)  # type: ignore[call-overload]
        return _forward(network, bench, dtype, layout)

    compiled = {COMPILED, COMPILED_FUSED, COMPILED_PLAIN}
    sides = [side for side in sides_of(bench, ours, plain) if side.name not in compiled]
    return measure(SECTION, sides, bench, machine, images=config.batch_size)[0]


def _forward(network: nn.Module, bench: Bench, dtype: str, layout: Any) -> Step:
    """One call is a batch."""
    patches, places_BN = question(bench.config, bench.device)
    patches = patches.contiguous(memory_format=layout)
    network.eval()

    def step() -> None:
        with torch.no_grad(), autocast(bench.device, dtype):
            network(patches, places_BN)

    return step
