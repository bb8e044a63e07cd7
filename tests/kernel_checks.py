"""How the results of kernels are judged: the one tolerance policy, and the three runs that it compares.

Truth is the same computation in fp64. A kernel may be off by twice what plain PyTorch in the kernel's dtypes is off by,
and by the rounding of the output's dtype at the size of the largest expected value; errors are largest absolute
differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastselfie.kernels import using
from fastselfie.kernels.dispatch import interpreted

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"
"""Without a CUDA device Triton interprets kernels; `tests.conftest` has it do so."""
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="works through Triton's interpreter")

Function = Callable[..., Sequence[Tensor]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orders(B: int, N: int, seed: int = 0) -> Tensor:
    """Random orders of N places, int64 (B, N)."""
    return torch.rand(B, N, generator=generator(seed)).argsort(dim=1)


def rounding(dtype: torch.dtype) -> float:
    """The relative error that writing a result in ``dtype`` may bring.

    Half a unit in 16 bits; the interpreter truncates to bf16, which is a whole one. A result in fp32 is some roundings
    deep, in an order of its own: four units, where a product in tf32 is off by thousands.
    """
    eps = torch.finfo(dtype).eps
    if dtype == torch.float32:
        return 4 * eps
    return eps if dtype == torch.bfloat16 and interpreted() else eps / 2


def assert_as_exact(kernel: Tensor, plain: Tensor, truth: Tensor, what: str = "") -> None:
    """The tolerance policy. ``truth`` is fp64; ``plain`` is plain PyTorch's result in the kernel's dtypes."""
    assert (kernel.dtype, kernel.shape) == (plain.dtype, plain.shape), what
    assert (truth.dtype, truth.shape) == (torch.float64, kernel.shape), what
    if kernel.numel() == 0:
        return
    largest = truth.abs().max().item()
    assert math.isfinite(largest), f"{what}: no finite truth to compare with"
    error = (kernel.double() - truth).abs().max().item()
    allowed = 2 * (plain.double() - truth).abs().max().item() + rounding(kernel.dtype) * largest
    assert error <= allowed, f"{what}: off by {error:.3e} with {allowed:.3e} allowed; largest value {largest:.3e}"


def results(function: Function, leaves: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of ``function(*leaves)``, then every leaf's gradient for ``upstream``, the gradients of the outputs."""
    fresh = [leaf.detach().requires_grad_() for leaf in leaves]
    outputs = function(*fresh)
    return [*(output.detach() for output in outputs), *torch.autograd.grad(list(outputs), fresh, list(upstream))]


def assert_kernel(
    function: Function, leaves: Sequence[Tensor], upstream: Sequence[Tensor], names: str, truth: Function | None = None
) -> list[Tensor]:
    """Run ``function`` with kernels, plainly, and in fp64 (or ``truth`` there); compare; the kernel's results.

    Args:
        leaves: floating-point tensors on `DEVICE`, of any strides.
        names: of outputs and then of leaves, between spaces.
    """
    with using("on"):
        kernel = results(function, leaves, upstream)
    with using("off"):
        plain = results(function, leaves, upstream)
        wide = [leaf.double() for leaf in leaves], [gradient.double() for gradient in upstream]
        exact = results(truth or function, *wide)
    for what, ours, theirs, true in zip(names.split(), kernel, plain, exact, strict=True):
        assert_as_exact(ours, theirs, true, what)
    return kernel
