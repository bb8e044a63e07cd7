"""Parts of the step by themselves, in the recipe's shapes: the trunk, the pooler with the head, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines.plain_selfie import PlainSelfie
from bench.baselines.steps import plain_network, question
from bench.report import whole_step
from bench.report.machine import Machine, bf16_lacks
from bench.report.rows import Row
from bench.report.settings import Bench
from bench.report.sides import Side, Step, measure
from bench.report.whole_step import (
    CHANNELS_LAST,
    COMPILED,
    COMPILED_FUSED,
    COMPILED_PLAIN,
    EAGER,
    FUSED,
    FUSED_TRUNK,
    PLAIN,
)
from fastselfie.config import PretrainConfig
from fastselfie.kernels import location_head
from fastselfie.models.convolution import channels_last
from fastselfie.models.pooler import AttentionPooler
from fastselfie.models.positions import Positions
from fastselfie.models.resnet import trunk
from fastselfie.models.selfie import Selfie
from fastselfie.training.optimizer import make_optimizer
from fastselfie.training.wrapping import compiled

Compiler = Callable[[Any], Any]
"""Compiles a call, or gives it back as it is."""
TRUNK, POOLER, OPTIMISER = "trunk alone", "pooler and head", "optimiser"


class PoolerAndHead(nn.Module):
    """FastSelfie's tail: tokens and the masked patches' features to the loss."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.pooler, self.positions = AttentionPooler(config), Positions(config.grid, config.features)
        self.scale, self.visible = config.features**-0.5, config.visible

    def forward(self, tokens_BTD: Tensor, h_BmD: Tensor, places_BN: Tensor) -> Tensor:
        """The loss."""
        u_BD = self.pooler(tokens_BTD)
        return location_head(u_BD, self.positions(), places_BN[:, self.visible :], h_BmD, self.scale)[0]


class PlainPoolerAndHead(nn.Module):
    """The peers' tail."""

    def __init__(self, network: PlainSelfie) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens_BTD: Tensor, h_BmD: Tensor, places_BN: Tensor) -> Tensor:
        """The loss."""
        return self.network.judge(self.network.summarise(tokens_BTD), h_BmD, places_BN)[0]


def trunk_alone(bench: Bench, machine: Machine) -> list[Row]:
    """Forward to the last map before the final norm, and backward from a random gradient."""
    config = bench.config

    def ours(compiler: Compiler) -> Step:
        network = trunk(config).to(bench.device)
        channels_last(network)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        patches = question(config, bench.device)[0].to(dtype, memory_format=torch.channels_last)
        forward = compiler(network.forward_stages)
        return _there_and_back(network, lambda maps: forward(maps)[0], patches, config.precision)

    def plain(dtype: str, compiler: Compiler) -> Step:
        layout = torch.channels_last if dtype == "bf16" else torch.contiguous_format
        network = plain_network(config, bench.device).to(memory_format=layout)  # type: ignore[call-overload]
        patches = question(config, bench.device)[0].contiguous(memory_format=layout)
        return _there_and_back(network, compiler(network.maps), patches, dtype)

    around = {FUSED, COMPILED_FUSED}  # there are no such kernels in it
    sides = [side for side in sides_of(bench, ours, plain) if side.name not in around]
    sides.insert(2, Side(
        name=FUSED_TRUNK, dtype=config.precision, build=lambda: ours(partial(compiled, backend=bench.backend)),
        lacks=whole_step.trunk_lacks(bench), counted_as=EAGER, kernels="on", trunk="fused",
    ))  # fmt: skip
    return measure(TRUNK, sides, bench, machine, images=config.batch_size)[0]


def pooler_and_head(bench: Bench, machine: Machine) -> list[Row]:
    """From tokens and the masked patches' features to the loss, and back to both."""
    config = bench.config

    def ours(compiler: Compiler) -> Step:
        network = PoolerAndHead(config).to(bench.device)
        return _question_and_answer(network, compiler(network), bench, config.precision)

    def plain(dtype: str, compiler: Compiler) -> Step:
        network = PlainPoolerAndHead(plain_network(config, bench.device))
        return _question_and_answer(network, compiler(network), bench, dtype)

    return measure(POOLER, sides_of(bench, ours, plain), bench, machine, images=config.batch_size)[0]


def optimiser(bench: Bench, machine: Machine) -> list[Row]:
    """One SGD update of the whole network: torch's fused kernel, which training takes, foreach, and a loop."""
    names = {"fused": "fused", "foreach": "foreach", "for-loop": ""}
    sides = [Side(name=name, dtype="fp32", build=partial(_update, bench, way)) for name, way in names.items()]
    return measure(OPTIMISER, sides, bench, machine, images=None)[0]


def sides_of(bench: Bench, ours: Callable[[Compiler], Step], plain: Callable[[str, Compiler], Step]) -> list[Side]:
    """Those of the whole step that a part has."""
    dtype, bf16 = bench.config.precision, bf16_lacks(bench.device)
    slow, fast = _compile_lacks(bench), whole_step.kernels_lack(bench)

    def eager(call: Any) -> Any:
        return call

    def as_training(call: Any) -> Any:
        return compiled(call, bench.device.type, bench.backend)

    def as_it_comes(call: Any) -> Any:
        return torch.compile(call, backend=bench.backend)

    return [
        Side(name=EAGER, dtype=dtype, build=lambda: ours(eager)),
        Side(name=COMPILED, dtype=dtype, build=lambda: ours(as_training), lacks=slow, counted_as=EAGER),
        Side(name=FUSED, dtype=dtype, build=lambda: ours(eager), lacks=fast, kernels="on"),
        Side(
            name=COMPILED_FUSED, dtype=dtype, build=lambda: ours(as_training), lacks=fast or slow, counted_as=EAGER,
            kernels="on",
        ),
        Side(name=PLAIN, dtype="fp32", build=lambda: plain("fp32", eager)),
        Side(name=CHANNELS_LAST, dtype="bf16", build=lambda: plain("bf16", eager), lacks=bf16),
        Side(
            name=COMPILED_PLAIN, dtype="bf16", build=lambda: plain("bf16", as_it_comes), lacks=bf16 or slow,
            counted_as=CHANNELS_LAST,
        ),
    ]  # fmt: skip


def _compile_lacks(bench: Bench) -> str:
    if bench.device.type == "cpu":
        return "compiled in the whole step alone: on a CPU each compilation takes longer than all else here"
    return whole_step.compile_lacks(bench)


def _there_and_back(network: nn.Module, forward: Any, patches: Tensor, dtype: str) -> Step:
    """One call is forward and backward of a trunk, from a gradient that is drawn in the first."""
    upstream: list[Tensor] = []

    def step() -> None:
        network.zero_grad()
        with autocast(patches.device, dtype):
            maps = forward(patches)
        if not upstream:
            upstream.append(torch.randn_like(maps))
        maps.backward(upstream[0])

    return step


def _question_and_answer(network: nn.Module, forward: Any, bench: Bench, dtype: str) -> Step:
    """One call is forward and backward of a tail. Tokens are fp32, as position vectors leave them."""
    config, device = bench.config, bench.device
    B, N, n, D = config.batch_size, config.patches, config.visible, config.features
    tokens_BTD = torch.randn(B, 1 + n, D, device=device, requires_grad=True)
    kept = torch.bfloat16 if dtype == "bf16" else torch.float32
    h_BmD = torch.randn(B, N - n, D, device=device, dtype=kept, requires_grad=True)
    places_BN = torch.rand(B, N, device=device).argsort(dim=1)

    def step() -> None:
        network.zero_grad()
        tokens_BTD.grad = h_BmD.grad = None
        with autocast(device, dtype):
            loss = forward(tokens_BTD, h_BmD, places_BN)
        loss.backward()

    return step


def _update(bench: Bench, way: str) -> Step:
    """One call is an update by random gradients. ``way``: torch's name of the implementation, empty for the loop."""
    network = Selfie(bench.config).to(bench.device)
    channels_last(network)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in make_optimizer(network, bench.config).param_groups
    ]
    config, choice = bench.config, {"fused": way == "fused", "foreach": way == "foreach"}
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, **choice).step


def autocast(device: torch.device, dtype: str) -> Any:
    """Of a side whose products are in ``dtype``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")
