"""`python -m bench modes`: torch.compile's modes, a CUDA graph of the whole step, and DDP's two orders, side by side.

A mode that gives an error has it in the table, in one line: that is an answer too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch

from bench.report.machine import Machine, measure_machine
from bench.report.processes import run_together
from bench.report.record import Record
from bench.report.rows import Row, Timing, not_run, row
from bench.report.settings import Bench, add_options, settle
from bench.report.sides import Side, Step, measure
from bench.report.tables import show
from bench.report.whole_step import compile_lacks, trainer
from bench.training_step import scenes, steps_of
from fastselfie.training.wrapping import compiled

MODES, ORDERS = "torch.compile mode", "DDP order"
OFF = "off"
_ON_CUDA = {
    "reduce-overhead": "what it reduces are a CUDA device's launches",
    "max-autotune-no-cudagraphs": "on a CPU it tunes for minutes; its choices are for a CUDA device",
}
_GRAPH = "CUDA graph of the whole step, a fixed batch"
_ORDERS = {OFF: "eager in DDP", "inside": "compiled inside DDP, as training has it", "outside": "DDP compiled outside"}


def add_parser(commands: Any) -> None:
    """`modes` among the commands."""
    parser = commands.add_parser("modes", help="compile modes, CUDA graphs and DDP's order, each tried and tabulated")
    add_options(parser)
    parser.add_argument("--processes", type=int, default=1, help="with 2 or more DDP's orders too; 1 when not given")
    parser.set_defaults(run=modes)


def modes(given: argparse.Namespace) -> int:
    """Write modes.json and modes.md; exit status 1 if the eager step failed. A mode that fails is an answer.

    Raises:
        UserError: an option makes no sense here.
    """
    bench = settle(given)
    machine = measure_machine(bench.device, bench.smoke)
    record = Record("modes", "Ways to compile the step", bench, machine)
    record.add(MODES, lambda: compile_modes(bench, machine))
    record.add(ORDERS, lambda: ddp_orders(bench, machine))
    show(record.told)
    return 0 if record.row(MODES, OFF) else 1


def compile_modes(bench: Bench, machine: Machine) -> list[Row]:
    """Our step with its network compiled in each mode."""
    lacks, on_cpu = compile_lacks(bench), bench.device.type == "cpu"
    scenes(bench.config)
    kernels = cast(Literal["on", "off"], bench.config.kernels)
    trunk = cast(Literal["fused", "plain"], bench.config.trunk)

    def side(name: str, build: Callable[[], Step], why_not: str) -> Side:
        return Side(
            name=name, build=build, dtype=bench.config.precision, lacks=why_not, kernels=kernels, trunk=trunk,
            counted_as="" if name == OFF else OFF, replays=name in (_GRAPH, "reduce-overhead"),
        )  # fmt: skip

    sides = [
        side(OFF, lambda: steps_of(trainer(bench)), ""),
        side("default", partial(_compiled, bench, "default"), lacks),
        *(
            side(mode, partial(_compiled, bench, mode), lacks or (why if on_cpu else ""))
            for mode, why in _ON_CUDA.items()
        ),
        side(_GRAPH, lambda: _graph(bench), "a CUDA graph needs a CUDA device" if on_cpu else ""),
    ]
    return measure(MODES, sides, bench, machine, images=bench.config.batch_size)[0]


def ddp_orders(bench: Bench, machine: Machine) -> list[Row]:
    """Eager, compiled inside and compiled outside of DDP, in as many processes as were asked for."""
    why = "one process; --processes N starts more" if bench.processes == 1 else compile_lacks(bench)
    if why:
        return [not_run(ORDERS, name, why) for name in _ORDERS.values()]
    plan = [{"name": name, "order": order, "meet": True} for order, name in _ORDERS.items()]
    rows = []
    for answer in run_together(bench, plan):
        if "error" in answer:
            rows.append(not_run(ORDERS, answer["name"], answer["error"], failed=True))
            continue
        timing = Timing(
            seconds=answer["seconds"], startup_s=answer["startup_s"], dtype=bench.config.precision,
            images=bench.config.batch_size,
        )  # fmt: skip
        rows.append(row(ORDERS, answer["name"], timing, machine))
    return rows


def _compiled(bench: Bench, mode: str) -> Step:
    made = trainer(bench)
    made.forward = compiled(made.network, bench.device.type, bench.backend, mode)
    return steps_of(made)


def _graph(bench: Bench) -> Step:
    """Forward, backward and update of one batch, recorded once and replayed. Loading and the schedule stay outside."""
    made = trainer(bench)
    job, device = made.job, bench.device
    batch = job.pipeline.batch(0, bench.config.batch_size)

    def train() -> None:
        # Weights that autocast had cast before would be baked into the graph.
        with torch.autocast("cuda", torch.bfloat16, enabled=bench.config.precision == "bf16", cache_enabled=False):
            loss = job.task.loss(made.network, batch)
        loss.value.backward()
        made.optimizer.step()

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            made.optimizer.zero_grad(set_to_none=True)
            train()
    torch.cuda.current_stream(device).wait_stream(stream)
    made.optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train()

    def replay(reads: object = (made, batch)) -> None:  # a graph does not keep what lay in memory before it
        graph.replay()

    return replay
