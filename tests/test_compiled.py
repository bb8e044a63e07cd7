"""What compiled graphs get in place of two operations is those operations, and Inductor makes of it what it should."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from fastselfie.kernels import small_map_operators
from fastselfie.kernels.let_through import let_through
from fastselfie.models import norm
from fastselfie.models.compiled import max_pool, norm_relu
from fastselfie.models.convolution import channels_last
from fastselfie.models.pooler import AttentionBlock
from fastselfie.models.resnet import Bottleneck, Stem, batch_norm
from fastselfie.training.wrapping import compiled
from tests.kernel_checks import assert_as_exact
from tests.small_networks import model_config

Call = Callable[[Tensor], Tensor]


def plain_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2, padding=1)


def with_gradient(call: Call, x: Tensor, *others: Tensor) -> list[Tensor]:
    """What comes of ``x``, and the gradients of it and of ``others`` for a random one of that."""
    leaf = x.detach().clone().requires_grad_()
    y = call(leaf)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, [leaf, *others], g.to(y.dtype))]


@pytest.mark.parametrize("sides", [(16, 16), (7, 9), (8, 5), (2, 3), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_pooling(sides: tuple[int, int], ties: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, *sides, dtype=torch.float64)
    x = (2 * x).round() if ties else x
    for ours, truth in zip(with_gradient(max_pool, x), with_gradient(plain_pool, x), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-15)


def test_pooling_of_what_diverged() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    x[0, 0, 3, 3] = torch.nan
    for ours, truth in zip(with_gradient(max_pool, x), with_gradient(plain_pool, x), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-15, equal_nan=True)


def made_norm(channels: int) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    made = batch_norm(channels)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(-1, 2, channels))
        made.bias.normal_()
    return made


def test_norm_and_relu() -> None:
    """In fp64 they are the modules: values, gradients and running statistics."""
    theirs = made_norm(6).double()
    own = copy.deepcopy(theirs)
    x = 3 + 2 * torch.randn(5, 6, 4, 4, dtype=torch.float64)
    ours = with_gradient(lambda x: norm_relu(own, x), x, own.weight, own.bias)
    truth = with_gradient(lambda x: F.relu(theirs(x)), x, theirs.weight, theirs.bias)
    torch.testing.assert_close([*ours, *own.buffers()], [*truth, *theirs.buffers()], rtol=1e-12, atol=1e-12)


def test_a_dead_channel_stays_dead() -> None:
    """Zero is not above zero: nothing comes back through a channel of zeros."""
    own = made_norm(2)
    with torch.no_grad():
        own.weight[1], own.bias[1] = 0, 0
    _, dx, dweight, dbias = with_gradient(lambda x: norm_relu(own, x), torch.randn(3, 2, 4, 4), own.weight, own.bias)
    assert dx[:, 0].abs().sum() > 0
    assert [of.abs().sum() for of in (dx[:, 1], dweight[1], dbias[1])] == [0, 0, 0]


def test_the_operator() -> None:
    """Its schema, its shapes without values, and that it computes what it says."""
    g, x = (torch.randn(2, 3, 4, 4).to(torch.bfloat16) for _ in range(2))
    slope, offset = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 0.3, -0.2])
    torch.library.opcheck(torch.ops.fastselfie.let_through.default, (g, x, slope, offset))
    dz = let_through(g, x, slope, offset)
    assert dz.dtype == torch.float32
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        z = x[b, c, i, j].item() * slope[c].item() + offset[c].item()
        assert dz[b, c, i, j].item() == (g[b, c, i, j].item() if z > 0 else 0)


@pytest.mark.parametrize("images", [2, 0])
def test_operators_of_small_maps(images: int) -> None:
    """As above. What they compute is tested with the convolutions."""
    x, weight, g = torch.randn(images, 3, 4, 4), torch.randn(5, 3, 3, 3), torch.randn(images, 5, 2, 2)
    operators: list[tuple[Any, tuple[Any, ...]]] = [
        (small_map_operators.input_gradient, (g, weight, 4, 4, 2)),
        (small_map_operators.weight_gradient, (g.bfloat16(), x.bfloat16(), 2)),
    ]
    for operator, arguments in operators:
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("away", [0.0, 1e4])
def test_statistics_keep_their_digits(away: float) -> None:
    """In fp32, with a mean far from 0, and with a first position that is far from all others."""
    x = away + torch.randn(512, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0] = away - 1000
    own = made_norm(4)
    norm_relu(own, x)
    for ours, truth in zip(own.buffers(), running_after(x.double()), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-4)


def running_after(x: Tensor) -> list[Tensor]:
    """Running mean and variance after one batch, by numbers: a tenth of the batch's own, the variance unbiased."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3))
    return [0.1 * mean, 0.9 + 0.1 * variance]


class Small(nn.Module):
    """The stem of 32-pixel patches, four blocks, of which two shrink maps, and what ends a trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = Stem(16, patch=32), made_norm(32)
        self.blocks = nn.Sequential(Bottleneck(16, 8, 1), *(Bottleneck(32, 8, stride) for stride in (1, 2, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return norm.norm_relu(self.norm, self.blocks(self.stem(x))).mean(dim=(2, 3))


def test_what_inductor_makes_of_them() -> None:
    """The eager modules' numbers, from kernels that have `let_through` inside, nothing of PyTorch's max-pooling on the
    way back, no mask kept for that, and small maps' convolutions as one call each."""
    torch.manual_seed(0)
    network = Small()
    channels_last(network)
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    eager = with_gradient(copy.deepcopy(network), x)
    truth = with_gradient(copy.deepcopy(network).double(), x.double())
    kept: list[torch.dtype] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.dtype)
        return tensor

    def there_and_back(x: Tensor) -> list[Tensor]:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return with_gradient(compiled(network, "cpu"), x)

    # What another version of this code compiled, caches would give again: they know operators by their names.
    with torch._inductor.config.patch(force_disable_caches=True):
        ours, (_, backward) = run_and_get_code(there_and_back, x)
    for name, graph, plain, exact in zip(("y", "dx"), ours, eager, truth, strict=True):
        assert_as_exact(graph, plain, exact, name)
    assert "let_through" in backward
    assert "let_through.default(buf" not in backward
    assert "max_pool2d_with_indices_backward" not in backward
    for name in ("small_map_input_gradient", "small_map_weight_gradient"):
        assert backward.count(f"torch.ops.fastselfie.{name}.default(") == 1, name
    assert torch.float32 in kept
    assert torch.bool not in kept


def test_dropout_leaves_out_what_it_does_in_an_eager_network() -> None:
    torch.manual_seed(0)
    network = AttentionBlock(model_config(dropout=0.3))
    x, results = torch.randn(2, 5, 64), []
    for call in (network, compiled(network, "cpu")):
        torch.manual_seed(3)
        results.append(with_gradient(call, x))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
