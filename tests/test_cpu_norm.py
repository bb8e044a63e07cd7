"""Batch norm and ReLU as numba compiles them, against fp64 written out, and where they run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fastselfie.config import ModelConfig
from fastselfie.kernels import cpu, using
from fastselfie.models.convolution import channels_last
from fastselfie.models.norm import norm_relu, pre_activation
from fastselfie.models.resnet import batch_norm, trunk

pytestmark = pytest.mark.skipif(cpu.lacks() is not None, reason=str(cpu.lacks()))

BF16, LAST = torch.bfloat16, torch.channels_last
# Around the blocks of 256 rows, and channels that fill no vector.
SHAPES = [(3, 5, 1, 1), (2, 24, 2, 2), (64, 7, 2, 2), (61, 33, 3, 2), (65, 16, 2, 2), (300, 64, 4, 4)]


def maps(*shape: int, seed: int, mean: float = 0.3, deviation: float = 1.0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * deviation + mean
    return drawn.to(BF16).contiguous(memory_format=LAST)


def a_norm(channels: int, momentum: float = 0.1) -> nn.BatchNorm2d:
    norm, drawn = batch_norm(channels), torch.Generator().manual_seed(channels)
    norm.momentum = momentum
    for tensor, least in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -1.0), (norm.running_var, 0.5)):
        assert tensor is not None
        tensor.data = least + torch.rand(channels, generator=drawn)
    return norm


def defined(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """Batch norm by its definition, then ReLU; in fp64 where x is."""
    mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    return ((x - mean) / (var + eps).sqrt() * weight_C[:, None, None] + bias_C[:, None, None]).relu()


def ran_compiled(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "NumbaNormReluBackward"


def close(ours: Tensor, exact: Tensor, ulps: float) -> None:
    """Within so many bf16 roundings of the exact value, and of what is typical where that is near 0."""
    allowed = ulps * 2**-8 * (exact.abs() + 0.05 * exact.square().mean().sqrt())
    worst = ((ours.double() - exact).abs() / allowed.clamp(min=1e-30)).max().item()
    assert worst <= 1, worst


@pytest.mark.parametrize("step", [None, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_every_gradient_are_those_of_fp64(shape: tuple[int, ...], step: int | None) -> None:
    norm, x = a_norm(shape[1]), maps(*shape, seed=1).requires_grad_()
    with using("off", norm="numba"):
        activated, picked, residual = pre_activation(norm, x, step)
    assert ran_compiled(activated)
    g, g_residual = maps(*shape, seed=2), maps(*shape, seed=3)
    wide, weight_C, bias_C = (t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias))
    exact = defined(wide, weight_C, bias_C, norm.eps)
    close(activated, exact, 1.02)

    came = [(activated, g.clone(memory_format=torch.preserve_format)), (residual, g_residual)]
    if picked is not None:
        close(picked, exact[:, :, ::2, ::2], 1.02)
        came.append((picked, maps(*picked.shape, seed=4)))
        g[:, :, ::2, ::2] += came[-1][1]  # the two meet in bf16
    torch.autograd.backward([part for part, _ in came], [gradient for _, gradient in came])
    torch.autograd.backward([exact, wide], [g.double(), g_residual.double()])
    for ours, truth, ulps in ((x, wide, 1.02), (norm.weight, weight_C, 0.01), (norm.bias, bias_C, 0.01)):
        assert ours.grad is not None
        assert truth.grad is not None
        close(ours.grad, truth.grad, ulps)


def test_running_statistics_move_as_pytorch_says() -> None:
    """By the unbiased variance, here by hand of four values."""
    norm = a_norm(1, momentum=0.25)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(3.0)
    x = torch.tensor([1.0, 2.0, 4.0, 9.0]).view(2, 1, 2, 1).to(BF16)  # mean 4, sum of squares from it 9 + 4 + 0 + 25
    with using("off", norm="numba"):
        norm_relu(norm, x)
    assert norm.running_mean.item() == pytest.approx(0.75 * 2 + 0.25 * 4, rel=1e-6)
    assert norm.running_var.item() == pytest.approx(0.75 * 3 + 0.25 * 38 / 3, rel=1e-6)


def test_a_mean_far_from_0_costs_no_accuracy() -> None:
    """Values around 1000 that lie a bf16 step of 4 apart: naive sums of squares in fp32 lose all of their variance."""
    x = (1000 + 4 * torch.randint(-1, 2, (600, 8, 4, 4), generator=torch.Generator().manual_seed(0))).to(BF16)
    norm = a_norm(8)
    with using("off", norm="numba"):
        y = norm_relu(norm, x.contiguous(memory_format=LAST))
    close(y, defined(x.double(), norm.weight.double(), norm.bias.double(), norm.eps), 1.02)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_sight(poison: float) -> None:
    """In its channel alone; a ReLU that swallows it would hide that training diverged."""
    norm, x = a_norm(3), maps(4, 3, 2, 2, seed=1)
    x[1, 1, 0, 1] = poison
    x.requires_grad_()
    with using("off", norm="numba"):
        y = norm_relu(norm, x)
    y.backward(torch.ones_like(y))
    for seen in (y, x.grad):
        assert seen is not None
        bad_C = seen.isnan().any(dim=(0, 2, 3))
        assert bad_C.tolist() == [False, True, False]
    assert norm.bias.grad is not None
    assert norm.bias.grad[1] == 16, "what is no number is not below 0: the gradient goes through"


def test_nor_is_any_kind_of_it_rounded_away() -> None:
    """All bits set: what a carry out of the lower half turns into 0."""
    norm = a_norm(3)
    norm.weight.data[1] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    with using("off", norm="numba"):
        y = norm_relu(norm, maps(4, 3, 2, 2, seed=1))
    assert y.isnan().all(dim=3).all(dim=2).all(dim=0).tolist() == [False, True, False]


def test_no_gradient_goes_through_where_relu_starts() -> None:
    """-1, 0 and 1 are normalised around 0, so one of three passes; 0 itself does not, as in PyTorch."""
    norm, x = batch_norm(1), torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).to(BF16)
    norm.bias.data.zero_()
    with using("off", norm="numba"):
        norm_relu(norm, x.requires_grad_()).sum().backward()
    assert norm.bias.grad is not None
    assert norm.bias.grad.item() == 1


def test_rounds_to_the_nearest_and_ties_to_even_like_pytorch() -> None:
    """Two values a channel normalise to -1 and 1: what comes out is then bias + weight, rounded."""
    weight = 1 + torch.arange(4001) / 2048  # among them every tie from 1 to 2
    norm = batch_norm(len(weight))
    norm.weight.data, norm.bias.data, norm.eps = weight, torch.zeros_like(weight), 0.0
    with using("off", norm="numba"):
        y = norm_relu(norm, torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, len(weight), 1, 1).to(BF16))
    assert torch.equal(y[1].flatten(), weight.to(BF16))


def test_the_number_of_threads_does_not_matter() -> None:
    before, x = torch.get_num_threads(), maps(70, 40, 4, 4, seed=1)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        norm, again = a_norm(40), x.clone(memory_format=torch.preserve_format).requires_grad_()
        with using("off", norm="numba"):
            y = norm_relu(norm, again)
        y.backward(maps(*x.shape, seed=2))
        results.append((y, again.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var))
    torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))  # type: ignore[arg-type]


def test_a_python_thread_runs_as_many_as_pytorch_has_set() -> None:
    """Also one in which PyTorch has not run yet, whose threads libgomp would count anew."""
    code = (
        "import os, threading, torch; from fastselfie.kernels.cpu import norm_relu as kernels\n"
        "def run():\n"
        "    before = len(os.listdir('/proc/self/task'))\n"
        "    kernels._forward(1, 1, 1, 1e-5, x, x, w, w, torch.empty(4, 1), torch.empty(1, 2, 1))\n"
        "    print(len(os.listdir('/proc/self/task')) - before)\n"
        "x, w = torch.zeros(1, 1, dtype=torch.bfloat16), torch.zeros(1)\n"
        "torch.set_num_threads(1); other = threading.Thread(target=run); other.start(); other.join()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("strides", ["of a mean", "channels first"])
def test_a_gradient_may_come_in_any_strides(strides: str) -> None:
    found = []
    for norm_by in ("numba", "torch"):
        norm, x = a_norm(16), maps(8, 16, 4, 4, seed=1).requires_grad_()
        with using("off", norm=norm_by):
            y = norm_relu(norm, x)
        (y.mean(dim=(2, 3)) if strides == "of a mean" else y.contiguous() * maps(8, 16, 4, 4, seed=2)).sum().backward()
        assert x.grad is not None
        found.append(x.grad.float())
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02 * found[1].abs().max().item())


@pytest.mark.parametrize("part", [1, 2])
def test_a_branch_alone_may_have_a_gradient(part: int) -> None:
    """Of the positions picked or of the map itself, channels first; weights may lie apart in memory."""
    norm, x = a_norm(6), maps(5, 6, 4, 4, seed=1).requires_grad_()
    norm.weight.data, norm.bias.data = torch.stack([norm.weight.data, norm.bias.data], dim=1).unbind(1)
    wide = x.detach().double().requires_grad_()
    exact = defined(wide, norm.weight.detach().double(), norm.bias.detach().double(), norm.eps)
    with using("off", norm="numba"):
        ours = pre_activation(norm, x, 2)[part]
    truth = exact[:, :, ::2, ::2] if part == 1 else wide
    assert ours is not None
    g = maps(*ours.shape, seed=2).contiguous()
    ours.backward(g)
    truth.backward(g.double())
    assert x.grad is not None
    assert wide.grad is not None
    close(x.grad, wide.grad, 1.02)


def test_a_residuals_gradient_may_come_channels_first() -> None:
    found = []
    for layout in (LAST, torch.contiguous_format):
        x, g = maps(5, 6, 4, 4, seed=1).requires_grad_(), maps(5, 6, 4, 4, seed=2)
        with using("off", norm="numba"):
            y, _, residual = pre_activation(a_norm(6), x)
        torch.autograd.backward([y, residual], [g, g.contiguous(memory_format=layout)])
        assert x.grad is not None
        found.append(x.grad)
    assert torch.equal(*found)


def test_maps_may_come_channels_first() -> None:
    x = maps(8, 16, 4, 4, seed=1)
    with using("off", norm="numba"):
        assert torch.equal(norm_relu(a_norm(16), x), norm_relu(a_norm(16), x.contiguous()))


def test_no_maps_are_refused() -> None:
    """As by PyTorch: their statistics are no numbers, and the running ones would never be numbers again."""
    norm = a_norm(3)
    with using("off", norm="numba"), pytest.raises(RuntimeError, match="norm: no statistics of maps of shape 0 x 3"):
        norm_relu(norm, maps(0, 3, 2, 2, seed=1))
    assert norm.running_mean is not None
    assert norm.running_mean.isfinite().all()


def test_second_derivatives_are_refused() -> None:
    x = maps(4, 3, 2, 2, seed=1).requires_grad_()
    with using("off", norm="numba"):
        y = norm_relu(a_norm(3), x)
    (g,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_where_it_runs() -> None:
    """bf16 maps in training with fp32 weights; everything else is PyTorch's."""
    x = maps(4, 16, 2, 2, seed=1).requires_grad_()
    half, frozen, bare = a_norm(16).to(BF16), a_norm(16).eval(), a_norm(16)
    bare.running_mean = bare.running_var = None
    for way, norm, given, ours in (
        ("auto", a_norm(16), x, True),
        ("numba", a_norm(16), x, True),
        ("torch", a_norm(16), x, False),
        ("numba", a_norm(16), x.float(), False),
        ("numba", half, x, False),
        ("numba", frozen, x, False),
        ("numba", bare, x, False),
    ):
        with using("off", norm=way):  # type: ignore[arg-type]
            assert ran_compiled(norm_relu(norm, given)) is ours, (way, given.dtype)
    with pytest.raises(ValueError, match="norm: expected auto, torch or numba, got 'on'"), using("off", norm="on"):  # type: ignore[arg-type]
        pass


def test_a_machine_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's where nobody asked; what was asked for is never quietly something else."""
    monkeypatch.setattr(cpu, "lacks", lambda: "numba (pip install it)")
    x = maps(4, 16, 2, 2, seed=1).requires_grad_()
    with using("off"):
        assert not ran_compiled(norm_relu(a_norm(16), x))
    with using("off", norm="numba"), pytest.raises(RuntimeError, match="norm: numba's kernels need numba"):
        norm_relu(a_norm(16), x)


def test_a_machine_that_is_not_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu.lacks.__wrapped__() == "Linux, where PyTorch runs on libgomp"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("sys.modules['numba'] = None", "numba (pip install 'fastselfie[turbo]'; import of numba halted"),
        ("os.environ['NUMBA_DISABLE_JIT'] = '1'", "numba's compiler, which NUMBA_DISABLE_JIT switches off"),
    ],
)
def test_what_a_machine_lacks(change: str, what: str) -> None:
    code = f"import os, sys; {change}; from fastselfie.kernels import cpu; print(cpu.lacks())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(what)


def test_profilers_and_fake_tensors_know_them() -> None:
    from fastselfie.kernels.cpu import norm_relu as kernels

    x, weight_C, bias_C = maps(9, 6, 3, 2, seed=1), torch.rand(6), torch.rand(6)
    _, affine_4C = kernels.forward(x, weight_C, bias_C, 1e-5)
    torch.library.opcheck(torch.ops.fastselfie.norm_relu, (x, weight_C, bias_C, 1e-5))
    for residual in (None, maps(9, 6, 3, 2, seed=3)):
        given = (maps(9, 6, 3, 2, seed=2), x, residual, affine_4C, 1e-5)
        torch.library.opcheck(torch.ops.fastselfie.norm_relu_backward, given)


def test_a_trunk_of_them_errs_no_more_than_one_of_pytorchs() -> None:
    """Gradients of ResNet-36 in bf16, both beside fp64's: 40 norms deep."""
    images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    directions = torch.randn(48, 256, generator=torch.Generator().manual_seed(1))

    def gradients(way: Literal["torch", "numba"], dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        network = trunk(ModelConfig(image_size=32, patch=8, width=0.25)).to(dtype)
        channels_last(network)
        with using("off", norm=way), torch.autocast("cpu", BF16, enabled=dtype == torch.float32):
            features = network(images.to(dtype).contiguous(memory_format=LAST))
        (features.double() * directions).sum().backward()
        return torch.cat([weight.grad.double().flatten() for weight in network.parameters() if weight.grad is not None])

    exact = gradients("torch", torch.float64)
    ours, theirs = ((gradients(way, torch.float32) - exact).norm() for way in ("numba", "torch"))
    assert ours < 1.1 * theirs, (ours / exact.norm(), theirs / exact.norm())
    assert 0 < ours < exact.norm()


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:40], lambda kept: b"garbage\n" * 100], ids=["cut short", "overwritten"]
)
def test_a_cache_that_cannot_be_read_is_done_without(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """What numba kept on disk is damaged: the kernels are compiled anew."""
    code = (
        "import torch; from fastselfie.models.norm import norm_relu; from fastselfie.models.resnet import batch_norm;"
        "y = norm_relu(batch_norm(4), torch.arange(32).view(2, 4, 2, 2).bfloat16());"
        "print(type(y.grad_fn).__name__, y.sum().item())"
    )

    def run() -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    first, kept = run(), sorted(tmp_path.rglob("*.nb?"))
    assert kept
    assert first.startswith("NumbaNormReluBackward")
    assert float(first.split()[1]) > 0
    for file in kept:
        file.write_bytes(damage(file.read_bytes()))
    assert run() == first
