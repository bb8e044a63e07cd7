"""Batch norm and ReLU with their branches in one node: values, gradients and statistics are the modules'."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.models.norm import norm_relu, pre_activation
from fastselfie.models.resnet import Bottleneck, batch_norm
from fastselfie.models.statistics import _Normalise, statistics

C = 6


@pytest.fixture
def norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    made = batch_norm(C).double()
    with torch.no_grad():
        made.weight.uniform_(0.5, 2)
        made.bias.normal_()
    return made


def maps() -> Tensor:
    x = torch.randn(5, C, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def plainly(norm: nn.BatchNorm2d, x: Tensor, step: int | None) -> tuple[Tensor, Tensor | None, Tensor]:
    activated = F.relu(norm(x))
    return activated, activated[:, :, ::step, ::step] if step else None, x


@pytest.mark.parametrize("step", [None, 1, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("used", [(0,), (0, 2), (0, 1), (1,), (2,), (0, 1, 2)])
def test_it_is_the_modules(norm: nn.BatchNorm2d, step: int | None, training: bool, used: tuple[int, ...]) -> None:
    """Whichever of the three are used; each enters a product, as convolutions are."""
    used = tuple(index for index in used if index != 1 or step) or (0,)
    x, found = maps(), []
    weights = [torch.randn(C, C, dtype=torch.float64) for _ in range(3)]
    for way in (pre_activation, plainly):
        own = copy.deepcopy(norm).train(training)
        leaf = x.detach().clone().requires_grad_()
        outputs = way(own, leaf, step)
        loss = sum(
            (torch.einsum("bchw,cd->bdhw", output, weights[index]) ** 2).sum()
            for index, output in enumerate(outputs)
            if index in used and output is not None
        )
        assert isinstance(loss, Tensor)
        gradients = torch.autograd.grad(loss, [leaf, own.weight, own.bias], allow_unused=True)
        found.append([*outputs, *gradients, own.running_mean, own.running_var])
    for ours, truth in zip(*found, strict=True):
        assert (ours is None) == (truth is None)
        if ours is not None:
            torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("counts", [True, False])
def test_a_norm_whose_counter_is_given_back(norm: nn.BatchNorm2d, counts: bool) -> None:
    """As weight averaging does it: statistics are the mean over the batches."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return norm_relu(self.norm, x)

    if counts:
        norm.num_batches_tracked = torch.tensor(0)
    else:
        norm.momentum = None  # without a counter torch leaves the statistics as they are
    batches = [maps().detach() + shift for shift in range(3)]
    if counts:
        torch.optim.swa_utils.update_bn(batches, Network())
        assert norm.num_batches_tracked is not None
        assert norm.num_batches_tracked.item() == 3
    else:
        Network()(batches[0])
    expected = torch.stack([x.mean(dim=(0, 2, 3)) for x in batches]).mean(dim=0) if counts else torch.zeros(C)
    torch.testing.assert_close(norm.running_mean, expected.double())


def test_a_norm_that_counts_and_has_a_momentum_counts(norm: nn.BatchNorm2d) -> None:
    norm.num_batches_tracked = torch.tensor(7)
    norm_relu(norm, maps())
    assert int(norm.num_batches_tracked) == 8


def test_a_callers_gradient_is_not_written_to(norm: nn.BatchNorm2d) -> None:
    x = maps()
    g = torch.randn_like(x)
    before = g.clone()
    norm_relu(norm, x).backward(g)
    assert torch.equal(g, before)


@pytest.mark.parametrize(("inner", "stride"), [(4, 1), (4, 2), (8, 1), (8, 2)])
def test_a_bottleneck_is_its_definition(inner: int, stride: int) -> None:
    """He et al. 2016b: three pre-activated convolutions plus the shortcut, of the pre-activated input where it has
    weights; written with convolutions alone."""
    torch.manual_seed(1)
    block = Bottleneck(16, inner, stride).double()
    other = copy.deepcopy(block)
    x = torch.randn(3, 16, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    first = F.relu(other.norm1(leaves[1]))
    y = F.conv2d(first, other.conv1.weight)
    y = F.conv2d(F.relu(other.norm2(y)), other.conv2.weight, stride=stride, padding=1)
    y = F.conv2d(F.relu(other.norm3(y)), other.conv3.weight)
    shortcut = leaves[1] if other.shortcut is None else F.conv2d(first, other.shortcut.weight, stride=stride)
    assert (other.shortcut is None) == (inner == 4 and stride == 1)
    expected, found = y + shortcut, block(leaves[0])
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(expected)
    for ours, truth in zip(
        torch.autograd.grad(found, [leaves[0], *block.parameters()], g),
        torch.autograd.grad(expected, [leaves[1], *other.parameters()], g),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth)
    for ours, truth in zip(block.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("count", [2, 4, 10])
def test_statistics_are_the_modules(norm: nn.BatchNorm2d, count: int) -> None:
    """The batch's, and the running ones as the module's forward leaves them; in evaluation those, as constants."""
    x, theirs = torch.randn(count // 2, C, 1, 2, dtype=torch.float64), copy.deepcopy(norm)
    theirs(x)
    its = statistics(norm, x)
    expected = torch.stack([x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)])
    torch.testing.assert_close(its.values_2D, expected)
    torch.testing.assert_close(norm.running_mean, theirs.running_mean)
    torch.testing.assert_close(norm.running_var, theirs.running_var)
    assert (its.count, its.group) == (count, "")
    constants = statistics(norm.eval(), x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.equal(constants.values_2D, torch.stack([norm.running_mean, norm.running_var]))
    assert constants.count == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_synchronised_norms_passes_without_others(norm: nn.BatchNorm2d, dtype: torch.dtype) -> None:
    """Against the module in fp64: maps and their gradient are of one dtype, and sums over a map lose nothing to it."""
    x, g = (maps().detach().to(dtype) for _ in range(2))
    exact = x.double().requires_grad_()
    theirs = norm(exact)
    expected = torch.autograd.grad(theirs, [exact, norm.weight, norm.bias], g.double())
    values_2D = torch.stack([exact.mean(dim=(0, 2, 3)), exact.var(dim=(0, 2, 3), correction=0)]).detach().float()
    given = [tensor.detach().float().requires_grad_() for tensor in (norm.weight, norm.bias)]
    x.requires_grad_()
    y = _Normalise.apply(x, *given, values_2D, 5 * 4 * 4, norm.eps, "")
    found = torch.autograd.grad(y, [x, *given], g)
    assert (y.dtype, found[0].dtype) == (dtype, dtype)
    near = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(y.double(), theirs, rtol=near, atol=near)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=near, atol=near)
    for ours, truth in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-4)
