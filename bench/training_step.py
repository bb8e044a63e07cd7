"""A whole pretraining step: FastSelfie against a plain eager fp32 implementation of the same network, interleaved.

Both do forward, backward and the SGD update on the paper's CIFAR-10 shape (16 patches of 8x8, 12 of them seen). Ours
also cuts its batch out of resident uint8 images, draws masks and keeps running statistics, as in training; the plain
side is handed its fp32 patches. Excluded on both: logging, evaluation, checkpoints.

On a CPU FastSelfie changes how the C library keeps memory. The plain side therefore runs twice there: in a process of
its own, as it would be run, and beside ours, where it gains from that change too. Ours runs as it does by default, with
PyTorch's batch norm where numba is there, and compiled where a compiler is and ``--compile`` does not decide.

    python -m bench.training_step --out bench/results/training_step_cpu.json
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.apart import apart
from bench.baselines.steps import eager_fp32
from bench.measure import interleaved, product_flops, summary, write
from bench.report.counting import count
from fastselfie.config import PretrainConfig
from fastselfie.kernels import using
from fastselfie.kernels.dispatch import Kernels
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.synthetic import synthetic_source
from fastselfie.recipes import recipe
from fastselfie.training.garbage import frozen_garbage
from fastselfie.training.hardware import choose_device, compiling_lacks, resolve, resolved, set_convolutions
from fastselfie.training.memory import keep_freed_memory
from fastselfie.training.pretrain import divide, pretraining_job
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.trainer import Trainer
from fastselfie.training.world import World

ENDLESS = 10**6
"""Steps of a run that is timed: more than there is time for."""
OURS, PLAIN, LENT = "fastselfie", "plain", "plain, with our memory settings"
THEIR_NORM, COMPILED = "fastselfie, with PyTorch's batch norm", "fastselfie, compiled"


def ours(config: PretrainConfig, device: torch.device) -> Callable[[], object]:
    """One call is one optimiser step of the training loop."""
    return steps_of(resident_trainer(config, World(rank=0, size=1, device=device)))


def resident_trainer(config: PretrainConfig, world: World) -> Trainer:
    """The training loop's state, on rendered scenes that lie on the device."""
    return make_trainer(config, world, scenes(config))


def scenes(config: PretrainConfig) -> Source:
    """Four batches of images; rendered once for all sides."""
    return _rendered(config.image_size, 4 * config.batch_size)


@cache
def _rendered(size: int, images: int) -> Source:
    return synthetic_source(size, train=images, test=16)


def make_trainer(config: PretrainConfig, world: World, source: Source) -> Trainer:
    """The training loop's state on the images of ``source``. Its folder is only a name: steps alone write nothing."""
    folder = RunFolder(Path(tempfile.gettempdir()) / "fastselfie-bench")
    return Trainer(pretraining_job(config, world, divide(config, source)), world, folder)


def steps_of(trainer: Trainer) -> Callable[[], object]:
    """One call is the next step."""
    steps = iter(range(trainer.job.config.steps))
    return lambda: trainer.step(next(steps))


def with_their_norm(step: Callable[[], object], kernels: Kernels) -> Callable[[], object]:
    """``step`` with PyTorch's batch norm."""

    def call() -> None:
        with using(kernels, norm="torch"):
            step()

    return call


def matrix_rates(config: PretrainConfig, device: torch.device, rates: Mapping[str, Any]) -> dict[str, Any]:
    """What the products and convolutions of ours and of the plain side make of the device's speed at one large product
    of their dtypes; and the ratio of the two if they made the same of it."""
    mine = torch.bfloat16 if config.precision == "bf16" else torch.float32
    alone = dataclasses.replace(config, compile="off")
    with using("off", trunk="plain"):  # operations are counted in PyTorch's own
        counted = {OURS: count(ours(alone, device)), PLAIN: count(eager_fp32(config, device))}
    sides: dict[str, Any] = {}
    for (name, counts), dtype in zip(counted.items(), (mine, torch.float32), strict=True):
        executed, peak = counts.flops / config.batch_size, product_flops(dtype, device)
        rate = executed * rates[name]["median"]
        sides[name] = {"executed_gflop_per_image": executed / 1e9, "tflops": rate / 1e12,
                       "large_product_tflops": peak / 1e12, "share": rate / peak}  # fmt: skip
    full = {name: side["large_product_tflops"] / side["executed_gflop_per_image"] for name, side in sides.items()}
    return sides | {
        "ratio_at_equal_shares": full[OURS] / full[PLAIN],
        "what": "a multiply-add is two operations; those with a padding's zeros count",
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All sides' images a second, how many times as fast ours is, and shares of the matrix rate."""
    base = dataclasses.replace(
        recipe(arguments.recipe).pretrain, width=arguments.width, batch_size=arguments.batch_size, steps=ENDLESS,
        device=arguments.device, precision=arguments.precision, compile=arguments.compile, kernels=arguments.kernels,
    )  # fmt: skip
    kind = choose_device(base.device).value
    if kind == "cpu":
        keep_freed_memory()
    choices = resolve(base, kind)
    config = resolved(base, choices)
    set_convolutions(config)  # for the plain side too
    device = torch.device(kind)
    kernels: Kernels = "off" if config.kernels == "off" else base.kernels
    with using(kernels), ExitStack() as stack:
        sides = {OURS: ours(config, device)}
        if config.norm == "numba":
            sides[THEIR_NORM] = with_their_norm(ours(config, device), kernels)
        if kind == "cpu" and arguments.compile == "auto" and not compiling_lacks(kind):
            sides[COMPILED] = ours(dataclasses.replace(config, compile="on"), device)
        sides[LENT if kind == "cpu" else PLAIN] = eager_fp32(config, device)
        if kind == "cpu":
            sides[PLAIN] = stack.enter_context(apart(eager_fp32, config, device))
        stack.enter_context(frozen_garbage())
        seconds = interleaved(sides, arguments.rounds, arguments.steps, device)
    rates = {name: summary(values, config.batch_size) for name, values in seconds.items()}
    return {
        "settings": {"recipe": config.recipe, "width": config.width, "batch_size": config.batch_size,
                     **{name: dataclasses.asdict(choice) for name, choice in choices.items()}},
        "images_per_second": rates,
        "ratio_of_medians": {
            own: {name: rates[own]["median"] / rates[name]["median"] for name in sides if name != own}
            for own in (OURS, COMPILED) if own in sides
        },
        "ratio_by_round": {
            own: {name: _ratios(seconds[name], seconds[own]) for name in sides if name != own}
            for own in (OURS, COMPILED) if own in sides
        },
        "matrix_rate": matrix_rates(config, device, rates),
    }  # fmt: skip


def _ratios(theirs: list[float], own: list[float]) -> list[float]:
    """How many times as fast ours was, round by round, in order of size."""
    return sorted(seconds / mine for seconds, mine in zip(theirs, own, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--kernels", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps a side in a round")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    result = measure(arguments)
    write(arguments.out, result, torch.device(choose_device(arguments.device).value))
    for name, rate in result["images_per_second"].items():
        spread = f"n = {rate['n']}, {rate['lowest']:.1f} to {rate['highest']:.1f}"
        told = (
            f"; {own} is {of[name]:.2f} times as fast" for own, of in result["ratio_of_medians"].items() if name in of
        )
        print(f"{name}: {rate['median']:.1f} images/s ({spread}){''.join(told)}")
    for name in (OURS, PLAIN):
        share = result["matrix_rate"][name]
        print(f"{name}: {share['tflops']:.3f} TFLOP/s executed, {share['share']:.0%} of a large product's")
    print(f"at equal shares the ratio would be {result['matrix_rate']['ratio_at_equal_shares']:.2f}")


if __name__ == "__main__":
    main()
