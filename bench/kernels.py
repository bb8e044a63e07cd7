"""The Triton kernels against plain PyTorch and torch.compile of it, in the recipes' shapes, interleaved in one process.

Forward as in training, with what backward needs kept; backward alone on kept graphs. Inputs are random and rotate among
as many sets as the device's cache does not hold, and so do results. Each side's results and gradients are compared with
plain PyTorch's before anything is timed. Bytes: see `bench.kernel_cases`; the ceiling is a large copy on the device.

    python -m bench.kernels --out FILE
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from bench.kernel_cases import Case, Inputs, LocationHead, cases
from bench.kernel_results import Row, markdown, row, slower_than_compiled
from bench.measure import copy_rate, interleaved_ms, write
from bench.report.sides import one_line
from fastselfie.kernels import reference
from fastselfie.kernels.dispatch import interpreted, lacks

Run = Callable[[Inputs], tuple[Tensor, ...]]
BATCHES, KEEPS = (("cifar10", 512), ("imagenet224", 256), ("imagenet224", 1024)), (0.75, 0.5)
_RESULTS = 2  # of `patch_tokens`; its gradients follow them
_ROTATED_BYTES = 256 * 2**20  # of inputs: several times a cache of 60 MB
_LARGEST_ERROR = {torch.bfloat16: 4e-3, torch.float32: 1e-4, torch.int64: 1e-2}
"""Of a result by its dtype, relative, in the norm of all its values: what rounding explains, and nothing wrong."""
_LARGEST_RELU_ERROR = 5e-3
"""Of gradients through a ReLU: where rounding moves a value across 0, its whole gradient comes or goes."""


def chosen(settings: argparse.Namespace) -> list[Case]:
    """The recipes' shapes and a large question; with --smoke 2 images each; with --only those of that name."""
    dtype = getattr(torch, settings.dtype or ("bfloat16" if settings.device == "cuda" else "float32"))
    few = [(name, 2) for name in dict(BATCHES)], KEEPS[:1]
    found = cases(dtype, *(few if settings.smoke else (BATCHES, KEEPS)))
    found.append(LocationHead(label="large", B=2 if settings.smoke else 1024, N=49, m=25, D=1024, dtype=dtype))
    return [case for case in found if settings.only in f"{case.operation} {case.name}"]


def sides_of(case: Case, device: torch.device, backend: str) -> dict[str, Run]:
    """The versions of the operation that run on the device."""
    plain: Run = lambda inputs: case.run(reference, inputs)  # noqa: E731
    compiled = torch.compile(plain, fullgraph=True, dynamic=False, backend=backend)
    if lacks(device.type):
        return {"plain": plain, "compiled": compiled}
    fused = _fused()
    kernel: Run = lambda inputs: case.run(fused, inputs)  # noqa: E731
    if case.operation == "patch_tokens" and not interpreted():
        # As in training, where what makes statistics of sums is compiled around the kernels.
        kernel = torch.compile(kernel, fullgraph=True, dynamic=False, backend=backend)
    return {"kernel": kernel, "plain": plain, "compiled": compiled}


def _fused() -> SimpleNamespace:
    from fastselfie.kernels.fused.channel_sums import channel_sums
    from fastselfie.kernels.fused.location_head import location_head
    from fastselfie.kernels.fused.patch_batch import patch_batch
    from fastselfie.kernels.fused.patch_tokens import patch_tokens

    return SimpleNamespace(
        channel_sums=channel_sums, location_head=location_head, patch_batch=patch_batch, patch_tokens=patch_tokens
    )


def leaves(inputs: Inputs) -> list[Tensor]:
    """What is differentiated by."""
    return [tensor for tensor in inputs.values() if tensor.requires_grad]


def gradients(outputs: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor, ...]:
    """Of the sum of results, each value times its own random number; the graph is kept."""
    results = [tensor for tensor in outputs if tensor.requires_grad]
    return torch.autograd.grad(results, leaves(inputs), _upstream(results), retain_graph=True)


def _upstream(results: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator(results[0].device).manual_seed(0)
    return [
        torch.randn(tensor.shape, device=tensor.device, dtype=tensor.dtype, generator=generator) for tensor in results
    ]


def errors(case: Case, sides: dict[str, Run], inputs: Inputs) -> dict[str, float]:
    """Each side's largest relative error against plain PyTorch.

    Raises:
        ValueError: a side computes something else.
    """
    computed = {}
    for name, run in sides.items():
        outputs = run(inputs)
        computed[name] = [*outputs, *(gradients(outputs, inputs) if case.backward_bytes else ())]
    truth, largest = computed.pop("plain"), {}
    for name, tensors in computed.items():
        pairs = list(zip(tensors, truth, strict=True))
        relative = [_relative(actual, expected) for actual, expected in pairs]
        for index, (error, (_, expected)) in enumerate(zip(relative, pairs, strict=True)):
            through_relu = case.operation == "patch_tokens" and index >= _RESULTS
            if not error <= (_LARGEST_RELU_ERROR if through_relu else _LARGEST_ERROR[expected.dtype]):
                raise ValueError(f"{name}'s result {index} is off by {error:.1e}")
        largest[name] = max(relative)
    return largest


def _relative(actual: Tensor, expected: Tensor) -> float:
    a, b = actual.detach().double(), expected.detach().double()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-30))


def measure(case: Case, device: torch.device, settings: argparse.Namespace, copy_gb_per_s: float) -> Iterator[Row]:
    """The rows of a case: forward and, where there is one, backward."""
    torch.compiler.reset()
    sides = sides_of(case, device, settings.backend)
    first = case.inputs(device, 0)
    error = errors(case, sides, first)
    size = sum(tensor.nbytes for tensor in first.values())
    count = 2 if settings.smoke else min(64, max(2, math.ceil(_ROTATED_BYTES / size)))
    sets = [first, *(case.inputs(device, seed) for seed in range(1, count))]

    def timed(direction: str, moved_bytes: int, steps: dict[str, Callable[[], object]]) -> Row:
        for step in steps.values():
            for _ in sets:  # memory for each set's results is there before anything is timed
                step()
        ms = interleaved_ms(steps, settings.rounds, 0 if settings.smoke else 10, device)
        return row(case, direction, moved_bytes, ms, copy_gb_per_s) | {"largest_errors": error}

    forward = {name: rotating(run, sets) for name, run in sides.items()}
    yield timed("forward", case.forward_bytes, forward)
    if case.backward_bytes:
        del forward
        yield timed("backward", case.backward_bytes, {name: backward(run, sets) for name, run in sides.items()})


def rotating(run: Callable[[Any], object], arguments: list[Any]) -> Callable[[], object]:
    """One call runs on the next of ``arguments``. Its results stay until those arguments' next turn, so that they too
    lie elsewhere in memory from call to call."""
    kept: list[object] = [None] * len(arguments)
    turns = cycle(range(len(arguments)))

    def step() -> None:
        index = next(turns)
        kept[index] = run(arguments[index])

    return step


def backward(run: Run, sets: list[Inputs]) -> Callable[[], object]:
    """One call differentiates a kept graph."""
    graphs = []
    for inputs in sets:
        results = [tensor for tensor in run(inputs) if tensor.requires_grad]
        graphs.append((results, leaves(inputs), _upstream(results)))

    def differentiate(graph: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> tuple[Tensor, ...]:
        results, by, upstream = graph
        return torch.autograd.grad(results, by, upstream, retain_graph=True)

    return rotating(differentiate, graphs)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="bfloat16 on CUDA, else float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--backend", default="inductor", help="torch.compile's")
    parser.add_argument("--smoke", action="store_true", help="2 images and a call a round: whether it runs, no timing")
    parser.add_argument("--only", default="", help="part of an operation and case, such as location_head or cifar10")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    settings = parser.parse_args(arguments)
    if settings.device == "cuda" and not torch.cuda.is_available():
        print(f"kernels: torch {torch.__version__} sees no CUDA device; --device cpu --smoke tries it", file=sys.stderr)
        sys.exit(2)
    device = torch.device(settings.device)
    copy_gb_per_s = copy_rate(device) / 1e9
    result: dict[str, Any] = {"interpreted": interpreted(), "backend": settings.backend, "copy_gb_per_s": copy_gb_per_s}
    rows: list[Row] = []
    wrong: list[str] = []
    with functorch_config.patch(donated_buffer=False):  # a compiled backward may else not run twice on one graph
        for case in chosen(settings):
            try:
                rows += list(measure(case, device, settings, copy_gb_per_s))  # all of a case, or nothing
            except Exception as error:  # off, or whatever a compiler or a device throws: the other cases go on
                wrong.append(f"{case.operation} {case.name}: {one_line(error)}")
                print(f"kernels: {wrong[-1]}", file=sys.stderr)
            # After every case: a run that is cut short leaves what it has.
            slower = [] if interpreted() else slower_than_compiled(rows)
            write(settings.out, result | {"slower_than_compiled": slower, "wrong": wrong, "rows": rows}, device)
    print(markdown(rows))
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
