"""The custom operators under the kernels: what PyTorch asks of any, in a compiled graph, and without a host's read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastselfie.kernels import channel_sums, location_head, patch_batch, patch_tokens, using
from tests.kernel_checks import DEVICE, generator, orders, results

pytest.importorskip("triton")
for _name in ("channel_sums", "location_head", "patch_batch", "patch_tokens"):
    pytest.importorskip(f"fastselfie.kernels.fused.{_name}")

B, N, n, D, m, EPS = 2, 9, 6, 32, 3, 1e-5
Arguments = list[Any]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(DEVICE)


def spread(tensor: Tensor) -> Tensor:
    """The same values in memory that is not contiguous, whatever the shape."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.dim() else tensor


def pixels_arguments() -> Arguments:
    random = generator()
    pixels = torch.randint(0, 256, (5, 12, 12, 3), dtype=torch.uint8, generator=random)
    rows, corners = torch.tensor([3, 0]), torch.tensor([[0, 4], [3, 1]])
    flips, places = torch.tensor([True, False]), orders(B, N)
    mean, std = torch.full((3,), 0.4), torch.full((3,), 0.3)
    given = [pixels, 4, mean, std, torch.float32, rows, corners, flips, 2, True, places]
    return [value.to(DEVICE) if isinstance(value, Tensor) else value for value in given]


def tokens_arguments() -> Arguments:
    statistics = torch.stack([noise(D), noise(D) ** 2 + 0.5])
    given: Arguments = [noise(B * N, D, 2, 2), statistics, noise(D), noise(D), noise(D), noise(N, D)]
    return [*given, orders(B, N).to(DEVICE), n, EPS, B * N * 4, ""]


def backward_arguments() -> Arguments:
    maps, statistics, weight, bias = tokens_arguments()[:4]
    return [noise(B, 1 + n, D, seed=1), noise(B, N - n, D, seed=2), maps, statistics, weight, bias]


def reduce_arguments() -> Arguments:
    return [*backward_arguments(), orders(B, N).argsort(dim=1).int().to(DEVICE), EPS, True]


def input_arguments() -> Arguments:
    return [*backward_arguments(), noise(2, D), EPS, B * N * 4]


def head_arguments() -> Arguments:
    places = orders(B, N)[:, :m].to(DEVICE)
    return [noise(B, D), noise(N, D, seed=1), places, noise(B, m, D, seed=2), 0.2, True]


def head_backward_arguments() -> Arguments:
    u_BD, positions_ND, _, h_BmD, *_ = head_arguments()
    return [torch.tensor(1.5, device=DEVICE), u_BD, positions_ND, h_BmD, noise(B, N, 16), 0.2]


ARGUMENTS: dict[str, Callable[[], Arguments]] = {
    "patch_batch": pixels_arguments,
    "channel_sums": lambda: [noise(B * N, D, 2, 2)],
    "patch_tokens": tokens_arguments,
    "patch_tokens_reduce": reduce_arguments,
    "patch_tokens_input": input_arguments,
    "location_head": head_arguments,
    "location_head_backward": head_backward_arguments,
}
DIFFERENTIABLE = {"patch_tokens": (0, 2, 3, 4, 5), "location_head": (0, 1, 3)}


def arguments_of(name: str, layout: str) -> Arguments:
    given = ARGUMENTS[name]()
    if layout == "spread":
        given = [spread(value) if isinstance(value, Tensor) else value for value in given]
    elif layout == "channels-last":
        last = torch.channels_last
        given = [v.to(memory_format=last) if isinstance(v, Tensor) and v.dim() == 4 else v for v in given]
    elif layout == "without":
        optional = {"patch_batch": (5, 6, 7, 10), "patch_tokens": (5,)}.get(name, ())
        given = [None if i in optional else value for i, value in enumerate(given)]
        if name == "patch_tokens_reduce":
            given[-1] = False
        if name == "location_head":
            given[-1] = False
    return given


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("layout", ["contiguous", "spread", "channels-last", "without"])
def test_opcheck(name: str, layout: str) -> None:
    given = arguments_of(name, layout)
    if name != "location_head" or layout != "without":  # without the scores there is no backward
        for i in DIFFERENTIABLE.get(name, ()):
            if isinstance(given[i], Tensor):
                given[i].requires_grad_()
    torch.library.opcheck(getattr(torch.ops.fastselfie, name).default, tuple(given))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("layout", ["contiguous", "spread"])
def test_inputs_stay_as_they_were(name: str, layout: str) -> None:
    given = arguments_of(name, layout)
    before = [value.clone() if isinstance(value, Tensor) else value for value in given]
    getattr(torch.ops.fastselfie, name)(*given)
    for value, original in zip(given, before, strict=True):
        assert torch.equal(value, original) if isinstance(value, Tensor) else value == original


def network(places_BN: Tensor, *leaves: Tensor) -> Sequence[Tensor]:
    """All operations of a training step after the trunk, in a row: its loss."""
    maps, weight, bias, u0, positions = leaves
    count = maps.numel() // D
    mean_2D = channel_sums(maps) / count
    statistics_2D = torch.stack([mean_2D[0], mean_2D[1] - mean_2D[0] ** 2]).float()
    given = (statistics_2D, weight, bias, u0, positions, places_BN)
    tokens, features = patch_tokens(maps, *given, n, eps=EPS, count=count)
    return location_head(tokens.mean(dim=1), positions, places_BN[:, n:], features, 0.2)[:1]


def network_leaves() -> list[Tensor]:
    return [noise(B * N, D, 2, 2), noise(D, seed=3), noise(D, seed=4), noise(D, seed=5), noise(N, D, seed=6)]


def cut() -> Tensor:
    """What `patch_batch` makes of the arguments above."""
    pixels, patch, mean, std, dtype, rows_B, corner_B2, flip_B, pad, _, places_BN = pixels_arguments()
    return patch_batch(
        pixels, patch=patch, mean=mean, std=std, dtype=dtype, rows_B=rows_B, corner_B2=corner_B2, flip_B=flip_B,
        pad=pad, pad_mode="reflect", places_BN=places_BN,
    )  # fmt: skip


UPSTREAM = [torch.tensor(1.0, device=DEVICE)]


def test_two_runs_agree_to_the_bit() -> None:
    run = partial(network, orders(B, N).to(DEVICE))
    with using("on"):
        first = [cut(), *results(run, network_leaves(), UPSTREAM)]
        for _ in range(3):
            again = [cut(), *results(run, network_leaves(), UPSTREAM)]
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_one_graph_gives_the_same(kernels: Any) -> None:
    backend = "aot_eager" if DEVICE.type == "cpu" else "inductor"
    places = orders(B, N).to(DEVICE)
    with using(kernels):
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend=backend)
        eager = results(partial(network, places), network_leaves(), UPSTREAM)
        graph = results(partial(compiled, places), network_leaves(), UPSTREAM)
        torch._dynamo.reset()
        given = pixels_arguments()

        def cutting(pixels: Tensor, mean: Tensor, std: Tensor, places_BN: Tensor) -> Tensor:
            return patch_batch(pixels, patch=4, mean=mean, std=std, dtype=torch.float32, places_BN=places_BN)

        tensors = (given[0][:B], given[2], given[3], given[10])
        eager.append(cutting(*tensors))
        graph.append(torch.compile(cutting, fullgraph=True, backend=backend)(*tensors))
    for one, other in zip(graph, eager, strict=True):
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_nothing_around_the_operators_reads_a_value() -> None:
    """Fake tensors have shapes and no values: whatever read one, forward or backward, would raise."""
    with FakeTensorMode(allow_non_fake_inputs=False), using("on"):

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=DEVICE)

        out = patch_batch(
            empty(5, 12, 12, 3, dtype=torch.uint8), patch=4, mean=empty(3), std=empty(3), dtype=torch.bfloat16,
            rows_B=empty(B, dtype=torch.int64), corner_B2=empty(B, 2, dtype=torch.int64), pad=2,
            flip_B=empty(B, dtype=torch.bool), places_BN=empty(B, N, dtype=torch.int64),
        )  # fmt: skip
        assert (out.shape, out.dtype, out.stride()) == ((B * N, 3, 4, 4), torch.bfloat16, (48, 1, 12, 3))
        maps, weight, bias = empty(B * N, D, 2, 2).requires_grad_(), empty(D).requires_grad_(), empty(D)
        positions, places_BN = empty(N, D).requires_grad_(), empty(B, N, dtype=torch.int64)
        given = (channel_sums(maps).float(), weight, bias, empty(D), positions, places_BN)
        tokens, features = patch_tokens(maps, *given, n, eps=EPS, count=B * N * 4)
        loss, right = location_head(tokens[:, 0], positions, places_BN[:, n:], features, 0.2)
        loss.backward()
        assert right.dtype == torch.int64
        assert all(leaf.grad is not None for leaf in (maps, weight, positions))
        with pytest.raises(DataDependentOutputException):
            loss.item()


@pytest.mark.gpu
def test_no_host_waits_for_the_device() -> None:
    leaves = [leaf.requires_grad_() for leaf in network_leaves()]
    places, given = orders(B, N).to(DEVICE), pixels_arguments()

    def step() -> None:
        network(places, *leaves)[0].backward()
        patch_batch(given[0], patch=4, mean=given[2], std=given[3], dtype=torch.bfloat16)

    with using("on"):
        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
