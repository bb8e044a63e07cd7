"""The fused bottleneck as a whole: output, every gradient and running statistics against its plain twin in fp64.

A value so near to 0 that rounding decides which side of a ReLU it falls on makes two right gradients differ. In fp32
that is rare and the seeds here have none; with 16 bits the ReLUs are kept open or shut, five deviations away. The
operators' own tests have them in between.
Shapes: M maps, C channels, K in the middle, h x w positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fastselfie.kernels import using
from fastselfie.kernels.dispatch import interpreted
from fastselfie.models import fused
from fastselfie.models.convolution import channels_last
from fastselfie.models.resnet import Bottleneck
from tests.kernel_checks import DEVICE, assert_as_exact, generator, rounding
from tests.small_networks import assert_near, randomise
from tests.trunk_cases import maps

pytest.importorskip("triton")
Forward = Callable[[Sequence[Bottleneck], Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Blocks in a row, (channels in, channels in the middle, stride) each."""

    blocks: tuple[tuple[int, int, int], ...]
    M: int = 5
    h: int = 8
    w: int = 8
    dtype: torch.dtype = torch.float32

    def network(self) -> list[Bottleneck]:
        torch.manual_seed(0)
        blocks = [Bottleneck(*sizes) for sizes in self.blocks]
        for index, block in enumerate(blocks):
            randomise(block, seed=index)
            channels_last(block)
            block.to(DEVICE)
            with torch.no_grad():
                block.norm2.weight[3] = 0
                block.norm3.weight[2] *= -1
                if self.dtype.itemsize == 2:
                    for norm in (block.norm1, block.norm2, block.norm3):
                        sign = torch.where(torch.arange(norm.num_features, device=DEVICE) % 4 == 1, -5.0, 5.0)
                        norm.bias.copy_(sign * norm.weight.abs() + (norm.weight == 0))
        return blocks

    def x(self) -> Tensor:
        return maps(self.M, self.blocks[0][0], self.h, self.w, self.dtype)


def run_fused(blocks: Sequence[Bottleneck], x: Tensor) -> Tensor:
    with using("on", trunk="fused"):
        assert fused.runs_fused(x, blocks)
        return fused.forward(blocks, x)[0]


def run_plain(blocks: Sequence[Bottleneck], x: Tensor) -> Tensor:
    with using("off", trunk="plain"), torch.autocast(x.device.type, x.dtype, enabled=x.dtype.itemsize == 2):
        return nn.Sequential(*blocks)(x)


def results(forward: Forward, blocks: Sequence[Bottleneck], x: Tensor) -> dict[str, Tensor]:
    """Of a copy of the blocks: y, and by their names gradients and running statistics."""
    network = nn.ModuleList(copy.deepcopy(list(blocks)))
    if x.dtype == torch.float64:
        network.double()
    x = x.detach().requires_grad_()
    y = forward([block for block in network if isinstance(block, Bottleneck)], x)
    dy = torch.randn(y.shape, generator=generator(9)).to(y)
    names, parameters = zip(*network.named_parameters(), strict=True)
    dx, *gradients = torch.autograd.grad(y, [x, *parameters], dy)
    return {"y": y.detach(), "x": dx, **dict(zip(names, gradients, strict=True)), **dict(network.named_buffers())}


def check(case: Case, training: bool = True) -> dict[str, Tensor]:
    blocks, x = case.network(), case.x()
    for block in blocks:
        block.train(training)
    kernel, plain = results(run_fused, blocks, x), results(run_plain, blocks, x)
    truth = results(run_plain, blocks, x.double())
    assert kernel.keys() == plain.keys() == truth.keys()
    for what, ours in kernel.items():
        largest = truth[what].abs().max().item()
        if largest < 1e-12:  # behind open ReLUs a bias moves what the next batch norm's mean takes off again
            continue
        if x.dtype == torch.bfloat16 and interpreted():  # truncated again and again, which is biased
            error = (plain[what].double() - truth[what]).abs().max().item() / largest
            assert_near(ours, truth[what], 2 * error + rounding(x.dtype), what)
        else:
            assert_as_exact(ours, plain[what], truth[what], what)
    return kernel


KINDS = {
    "first": Case(blocks=((16, 16, 1),), M=3),
    "identity": Case(blocks=((64, 16, 1),), M=3),
    "strided": Case(blocks=((64, 32, 2),), M=3),
    "4x4": Case(blocks=((128, 32, 1),), h=4, w=4),
    "dense 2x2": Case(blocks=((128, 32, 1),), M=33, h=2, w=2),
    "dense 2x2 with a shortcut": Case(blocks=((48, 16, 1),), M=33, h=2, w=2),
    "odd sides": Case(blocks=((32, 48, 2),), M=7, h=5, w=7),
    "2x2 to 1x1": Case(blocks=((64, 32, 2),), M=65, h=2, w=2),
    "1x1": Case(blocks=((64, 16, 1),), M=65, h=1, w=1),
    "a stage": Case(blocks=((64, 32, 2), (128, 32, 1), (128, 16, 1)), M=9, h=4, w=4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training(kind: str) -> None:
    check(KINDS[kind])


@pytest.mark.parametrize("kind", ["first", "identity", "dense 2x2", "odd sides"])
def test_evaluation(kind: str) -> None:
    """With running statistics, which stay; gradients go through none."""
    case = KINDS[kind]
    found = check(case, training=False)
    for name, buffer in nn.ModuleList(case.network()).named_buffers():
        assert torch.equal(found[name], buffer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["first", "strided", "4x4", "dense 2x2"])
def test_16_bits(kind: str, dtype: torch.dtype) -> None:
    case = KINDS[kind]
    found = check(Case(blocks=case.blocks, M=case.M, h=case.h, w=case.w, dtype=dtype))
    assert found["y"].dtype == found["x"].dtype == dtype
    assert found["0.conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_any_strides(layout: torch.memory_format) -> None:
    """Of the output: one number everywhere, as .sum() leaves it, and maps that are not channels-last."""
    blocks, x = KINDS["strided"].network(), KINDS["strided"].x().contiguous(memory_format=layout)
    found = []
    for forward, given in ((run_fused, x), (run_plain, x.double())):
        network = copy.deepcopy(blocks[0]).to(given.dtype)
        leaf = given.detach().requires_grad_()
        y = forward([network], leaf)
        for upstream in (y.new_ones(()).expand(y.shape), y.detach().contiguous()):
            found.append(torch.autograd.grad(y, [leaf, network.conv3.weight], upstream, retain_graph=True))
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-4)


def test_the_sums_of_the_last_map() -> None:
    """They come with it, for the batch norm that follows, where `patch_tokens` runs fused too."""
    case = KINDS["odd sides"]
    for kernels in ("on", "off"):
        with using(kernels, trunk="fused"):
            y, sums = fused.forward(case.network(), case.x())
        if kernels == "off":
            assert sums is None
        else:
            assert sums is not None
            assert not sums.requires_grad
            expected = torch.stack([y.double().sum(dim=(0, 2, 3)), (y.double() ** 2).sum(dim=(0, 2, 3))])
            torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-3)


def test_a_second_derivative_is_refused() -> None:
    case = Case(blocks=((16, 16, 1),), h=4, w=4)
    x = case.x().requires_grad_()
    (dx,) = torch.autograd.grad(run_fused(case.network(), x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()
