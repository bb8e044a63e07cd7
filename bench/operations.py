"""Micro benches of the operations around the trunk as the dispatch runs them, on the CUDA device or else on the CPU.

`bench.kernels` compares versions; this follows one over time. Both take their cases from `bench.kernel_cases`.

pytest bench/operations.py --benchmark-enable --benchmark-json=FILE
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.kernel_cases import Case, cases
from fastselfie import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
CASES = cases(DTYPE, (("cifar10", 512), ("imagenet224", 64)), (0.75,))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.operation} {case.name}")
def test_operation(benchmark: BenchmarkFixture, case: Case) -> None:
    """Forward, and backward where there is one."""
    inputs = case.inputs(DEVICE, 0)
    leaves = [tensor for tensor in inputs.values() if tensor.requires_grad]

    def run() -> tuple[Tensor, ...]:
        outputs = case.run(kernels, inputs)
        if leaves:
            results = [tensor for tensor in outputs if tensor.requires_grad]
            torch.autograd.grad(results, leaves, [torch.ones_like(tensor) for tensor in results])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return outputs

    outputs = benchmark(run)
    benchmark.extra_info |= {"device": str(DEVICE), "bytes": case.forward_bytes + case.backward_bytes}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in outputs)
