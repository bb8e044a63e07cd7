"""The fused trunk's six custom operators: what PyTorch asks of any, in a compiled graph, and bit for bit again.

Every test here also watches that the kernels stay inside their arguments (`tests.interpreted_memory.in_bounds`).
Shapes: M maps, C and O channels, h x w positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastselfie.config import ModelConfig
from fastselfie.kernels import using
from fastselfie.models.resnet import trunk
from tests.kernel_checks import DEVICE
from tests.test_trunk_bottleneck import Case, results, run_fused
from tests.trunk_cases import affine, laid_out, maps, weights

pytest.importorskip("triton")
pytest.importorskip("fastselfie.kernels.fused.bottleneck")  # registers them

M, C, O = 3, 16, 48
Arguments = list[Any]
BACKEND = "aot_eager" if DEVICE.type == "cpu" else "inductor"
BLOCKS = Case(blocks=((16, 16, 2), (64, 16, 1)), M=5, h=4, w=4)  # strided, then dense on 2x2 maps


def convolution(side: int, stride: int, normalised: bool, residual: bool, sums: bool) -> Arguments:
    around = maps(M, O, -(-5 // stride), -(-7 // stride), seed=1) if residual else None
    return [maps(M, C, 5, 7), affine(C) if normalised else None, weights(O, C, side), around, stride, sums]


def convolution_input(stride: int, branch: bool) -> Arguments:
    around = maps(M, C, -(-5 // stride), -(-7 // stride), seed=2) if branch else None
    return [maps(M, O, 5, 7, seed=1), weights(O, C, 1), maps(M, C, 5, 7), affine(C), affine(C, 1)[0], around, stride]


def convolution_weight(stride: int) -> Arguments:
    return [maps(M, O, -(-5 // stride), -(-7 // stride), seed=1), maps(M, C, 5, 7), affine(C), stride]


GRADIENT = lambda: [maps(M, O, 5, 7, seed=1), maps(M, O, 5, 7), affine(O)]  # noqa: E731
ARGUMENTS: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "convolution 1x1": ("convolution", lambda: convolution(1, 1, True, True, True)),
    "convolution 1x1 stride 2": ("convolution", lambda: convolution(1, 2, True, False, False)),
    "convolution 3x3": ("convolution", lambda: convolution(3, 2, False, True, True)),
    "convolution_input": ("convolution_input", lambda: convolution_input(1, False)),
    "convolution_input with a branch": ("convolution_input", lambda: convolution_input(2, True)),
    "convolution_weight": ("convolution_weight", lambda: convolution_weight(1)),
    "convolution_weight stride 2": ("convolution_weight", lambda: convolution_weight(2)),
    "normalise": ("normalise", lambda: [maps(M, O, 5, 7), affine(O)]),
    "normalisation_sums": ("normalisation_sums", lambda: [*GRADIENT(), affine(O, 1)[0]]),
    "normalisation_input": ("normalisation_input", lambda: [*GRADIENT(), affine(O, 1), None]),
    "normalisation_input around": ("normalisation_input", lambda: [*GRADIENT(), affine(O, 1), maps(M, O, 5, 7)]),
}


def arguments_of(case: str, layout: str) -> tuple[Any, Arguments]:
    name, make = ARGUMENTS[case]
    given = make()
    if layout:
        given = [laid_out(v, layout) if isinstance(v, Tensor) and v.dim() == 4 else v for v in given]
    return getattr(torch.ops.fastselfie, name).default, given


@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("layout", ["", "window"])
def test_opcheck(case: str, layout: str) -> None:
    operator, given = arguments_of(case, layout)
    torch.library.opcheck(operator, tuple(given))


@pytest.mark.parametrize("case", ARGUMENTS)
def test_again_the_same_bits_and_inputs_as_they_were(case: str) -> None:
    operator, given = arguments_of(case, "")
    before = [value.clone() if isinstance(value, Tensor) else value for value in given]
    first, second = (operator(*given) for _ in range(2))
    for one, other in zip(*((v if isinstance(v, tuple) else (v,)) for v in (first, second)), strict=True):
        assert torch.equal(one, other)
    for value, original in zip(given, before, strict=True):
        assert torch.equal(value, original) if isinstance(value, Tensor) else value == original


def test_a_step_of_blocks_has_the_same_bits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # it has the 3x3 ones' gradients
    first, second = (results(run_fused, BLOCKS.network(), BLOCKS.x()) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


@pytest.mark.parametrize("training", [True, False])
def test_one_graph_gives_the_same(training: bool) -> None:
    blocks = BLOCKS.network()
    for block in blocks:
        block.train(training)
    torch._dynamo.reset()
    eager = results(run_fused, blocks, BLOCKS.x())
    graph = results(torch.compile(run_fused, fullgraph=True, backend=BACKEND), blocks, BLOCKS.x())
    for name, tensor in eager.items():
        assert graph[name].stride() == tensor.stride(), name
        torch.testing.assert_close(graph[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_nothing_in_the_trunk_reads_a_value() -> None:
    """Fake tensors have shapes and no values: whatever read one, forward or backward, would raise."""
    with FakeTensorMode(), torch.device(DEVICE), using("on", trunk="fused"):
        network = trunk(ModelConfig(width=0.25))
        x = torch.randn(8, 3, 8, 8)
        y, sums = network.forward_stages(x)
        assert sums is not None
        assert (y.shape, sums.shape) == ((8, 256, 2, 2), (2, 256))
        y.sum().backward()
        gradients = [p.grad for p in network.stages.parameters()]
        assert all(gradient is not None for gradient in gradients)
