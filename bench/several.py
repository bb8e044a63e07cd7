"""One of the processes that `bench.report.processes` and `bench.modes` start: DDP's variants, timed in turns.

python -m torch.distributed.run --standalone --nproc-per-node 2 --module bench.several ASKED.json ANSWERED.json
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.parallel import DistributedDataParallel

from bench.measure import interleaved, wait
from bench.report.sides import one_line
from bench.training_step import resident_trainer, steps_of
from fastselfie.config import PretrainConfig
from fastselfie.files import replace_json
from fastselfie.kernels import using
from fastselfie.training.hardware import set_convolutions
from fastselfie.training.memory import keep_freed_memory
from fastselfie.training.world import World, join_world
from fastselfie.training.wrapping import inductor_settings, wrap

Step = Callable[[], object]


def ordered(network: nn.Module, order: str, config: PretrainConfig, world: World, backend: str) -> Callable[..., Any]:
    """DDP with the network compiled ``inside`` it, as training has it, compiled from ``outside``, or not (``off``)."""
    eager = replace(config, compile="off")
    if order == "inside":
        # What is compiled is a module again.
        return wrap(torch.compile(network, backend=_own(backend, config)), eager, world)  # type: ignore[arg-type]
    distributed = wrap(network, eager, world)
    return torch.compile(distributed, backend=_own(backend, config)) if order == "outside" else distributed


def _own(backend: str, config: PretrainConfig) -> Callable[..., Any]:
    """A backend that equals no other: graphs are kept by it, and a variant would take over the one before's."""
    compiler = lookup_backend(backend)
    settings: dict[str, Any] = {"config_patches": inductor_settings(config.device)} if backend == "inductor" else {}
    return lambda graph, inputs: compiler(graph, inputs, **settings)


def step_of(variant: dict[str, Any], config: PretrainConfig, world: World, backend: str) -> Step:
    """The training loop's step as the variant has it."""
    trainer = resident_trainer(replace(config, compile="off"), replace(world, distributed=False))
    trainer.forward = ordered(trainer.network, variant["order"], config, world, backend)
    step = steps_of(trainer)

    def run() -> None:
        alone = isinstance(trainer.forward, DistributedDataParallel) and not variant["meet"]
        with trainer.forward.no_sync() if alone else nullcontext():  # type: ignore[attr-defined]
            step()

    return run


def measure(asked: dict[str, Any], config: PretrainConfig, world: World) -> list[dict[str, Any]]:
    """Every variant's answer; one that fails, fails in all processes alike."""
    answers: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    slowest_s = 0.0
    for variant in asked["plan"]:
        name = variant["name"]
        try:
            world.barrier()
            started = time.perf_counter()
            step = step_of(variant, config, world, asked["backend"])
            step()
            wait(world.device)
            ready = time.perf_counter()
            step()
            wait(world.device)
            slowest_s = max(slowest_s, time.perf_counter() - ready)
        except Exception as error:  # a compiler's refusal is an answer too
            answers[name] = {"name": name, "error": one_line(error)}
            continue
        steps[name], answers[name] = step, {"name": name, "startup_s": ready - started}
    agreed_s = world.gather(torch.tensor(slowest_s)).max().item()
    count = max(1, math.ceil(asked["round_s"] / max(agreed_s, 1e-6)))
    seconds = interleaved(steps, asked["rounds"], count, world.device)
    return [answer | ({"seconds": seconds[name]} if name in seconds else {}) for name, answer in answers.items()]


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    config = PretrainConfig(**{name: _tuple(value) for name, value in asked["config"].items()})
    if config.device == "cpu":
        keep_freed_memory()
    set_convolutions(config)
    with join_world(config.device) as world, using("on" if config.kernels == "on" else "off", config.trunk):
        answers = measure(asked, config, world)
        if world.is_main:
            replace_json(Path(sys.argv[2]), {"answers": answers})


def _tuple(value: Any) -> Any:
    """JSON has lists where the settings have tuples."""
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
