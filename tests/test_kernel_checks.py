"""What the operations refuse, in words that name the argument; and which version of them runs."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastselfie.kernels import channel_sums, checks, location_head, patch_batch, patch_tokens, using
from tests.kernel_checks import DEVICE, orders

pytest.importorskip("triton")

B, N, n, D, m, S = 2, 4, 3, 16, 2, 5
Arguments = dict[str, Any]


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=DEVICE)


def pixels_arguments() -> Arguments:
    rows = torch.zeros(B, dtype=torch.int64, device=DEVICE)
    return {
        "pixels": ones(S, 8, 12, 3, dtype=torch.uint8), "patch": 4, "mean": ones(3), "std": ones(3),
        "dtype": torch.float32, "rows_B": rows, "corner_B2": ones(B, 2, dtype=torch.int64),
        "flip_B": ones(B, dtype=torch.bool), "pad": 1, "places_BN": orders(B, 6).to(DEVICE),
    }  # fmt: skip


def tokens_arguments() -> Arguments:
    return {
        "maps": ones(B * N, D, 2, 2), "statistics_2D": ones(2, D), "weight_D": ones(D), "bias_D": ones(D),
        "u0_D": ones(D), "positions_ND": ones(N, D), "places_BN": orders(B, N).to(DEVICE), "visible": n, "eps": 1e-5,
        "count": 0,
    }  # fmt: skip


def head_arguments() -> Arguments:
    return {
        "u_BD": ones(B, D), "positions_ND": ones(N, D), "places_Bm": orders(B, N)[:, :m].to(DEVICE),
        "h_BmD": ones(B, m, D), "scale": 1.0,
    }  # fmt: skip


OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]] = {
    "patch_batch": (patch_batch, pixels_arguments),
    "channel_sums": (channel_sums, lambda: {"maps": ones(B * N, D, 2, 2)}),
    "patch_tokens": (patch_tokens, tokens_arguments),
    "location_head": (location_head, head_arguments),
}
TENSORS = [
    (name, key)
    for name, (_, make) in OPERATIONS.items()
    for key in make()
    if isinstance(make()[key], Tensor)
]  # fmt: skip


def refused(operation: str, changes: Arguments) -> str:
    """What the ValueError says."""
    run, make = OPERATIONS[operation]
    with pytest.raises(ValueError, match=":") as caught:
        run(**(make() | changes))
    return str(caught.value)


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_arguments_are_fine_before_they_are_spoilt(operation: str, kernels: Any) -> None:
    run, make = OPERATIONS[operation]
    with using(kernels):
        run(**make())


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize(("operation", "name"), TENSORS)
def test_wrong_dtypes(operation: str, name: str, kernels: Any) -> None:
    with using(kernels):
        said = refused(operation, {name: OPERATIONS[operation][1]()[name].to(torch.int16)})
    assert re.match(rf"{name}: expected [a-z0-9 ]+ \(.*\) on {DEVICE.type}.*, got int16 \(", said), said


@pytest.mark.parametrize(("operation", "name"), TENSORS)
def test_wrong_shapes(operation: str, name: str) -> None:
    tensor = OPERATIONS[operation][1]()[name]
    said = refused(operation, {name: tensor[None]})
    sizes = ", ".join(map(str, (1, *tensor.shape)))
    assert re.match(rf"{name}: expected .*, got \w+ \({sizes}\)", said), said


@pytest.mark.parametrize(("operation", "name"), TENSORS)
def test_no_tensor(operation: str, name: str) -> None:
    """A mean is given as a tuple elsewhere."""
    said = refused(operation, {name: (0.5, 0.5, 0.5)})
    assert re.fullmatch(rf"{name}: expected a tensor( \(.*\))?, got tuple", said), said


def test_too_few_dimensions() -> None:
    said = refused("location_head", {"h_BmD": ones(D)})
    assert said == "h_BmD: expected a tensor (B, m, D), got float32 (16)"


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_a_learnt_scale(kernels: Any) -> None:
    """Plain PyTorch would train it, the kernels would not."""
    with using(kernels):
        said = refused("location_head", {"scale": torch.nn.Parameter(ones())})
    assert said == "scale: expected a number, got a tensor; one that is learnt can multiply u_BD and positions_ND"


@pytest.mark.parametrize("name", ["location_head", "patch_tokens"])
def test_kernels_have_no_second_derivatives(name: str) -> None:
    """A penalty on gradients would be left out of the gradients without an error."""
    run, make = OPERATIONS[name]
    arguments = make()
    leaves = [key for key, value in arguments.items() if isinstance(value, Tensor) and value.is_floating_point()]
    for key in leaves:
        arguments[key] = torch.rand_like(arguments[key]).requires_grad_(key != "statistics_2D")
    with using("on"):
        outputs = run(**arguments)
    inputs = [arguments[key] for key in leaves if key != "statistics_2D"]
    loss = torch.stack([output.square().sum() for output in outputs if output.is_floating_point()]).sum()
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"fastselfie::{name}_\w+: kernels have no second derivatives"):
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()


SIZED = [
    ("patch_batch", "pixels", 3, "(S, H, W, 3)"),
    ("patch_batch", "mean", 0, "(3)"),
    ("patch_batch", "std", 0, "(3)"),
    ("patch_batch", "corner_B2", 0, "(2, 2)"),
    ("patch_batch", "corner_B2", 1, "(2, 2)"),
    ("patch_batch", "flip_B", 0, "(2)"),
    ("patch_batch", "places_BN", 0, "(2, 6)"),
    ("patch_batch", "places_BN", 1, "(2, 6)"),
    ("patch_tokens", "statistics_2D", 0, "(2, 16)"),
    ("patch_tokens", "statistics_2D", 1, "(2, 16)"),
    ("patch_tokens", "weight_D", 0, "(16)"),
    ("patch_tokens", "bias_D", 0, "(16)"),
    ("patch_tokens", "u0_D", 0, "(16)"),
    ("patch_tokens", "positions_ND", 0, "(4, 16)"),
    ("patch_tokens", "positions_ND", 1, "(4, 16)"),
    ("location_head", "u_BD", 0, "(2, 16)"),
    ("location_head", "u_BD", 1, "(2, 16)"),
    ("location_head", "positions_ND", 1, "(N, 16)"),
    ("location_head", "places_Bm", 0, "(2, 2)"),
    ("location_head", "places_Bm", 1, "(2, 2)"),
]


@pytest.mark.parametrize(("operation", "name", "dim", "expected"), SIZED)
def test_wrong_sizes(operation: str, name: str, dim: int, expected: str) -> None:
    tensor = OPERATIONS[operation][1]()[name]
    said = refused(operation, {name: torch.cat([tensor, tensor], dim=dim)})
    assert said.startswith(f"{name}: expected ")
    assert expected in said.partition(", got ")[0]


@pytest.mark.parametrize(
    ("operation", "name"), [pair for pair in TENSORS if pair[1] not in ("pixels", "maps", "h_BmD")]
)
def test_another_device(operation: str, name: str) -> None:
    said = refused(operation, {name: OPERATIONS[operation][1]()[name].to("meta")})
    assert re.match(rf"{name}: expected .* on {DEVICE.type}.*, got .* on meta$", said), said


CELLS = ones(B, 2, 4, 2, 4, 3, dtype=torch.uint8)
VALUES: list[tuple[str, Arguments, str]] = [
    ("patch_batch", {"patch": 5}, "patch: expected a divisor of 8 and 12, got 5"),
    ("patch_batch", {"patch": 8}, "patch: expected a divisor of 8 and 12, got 8"),
    ("patch_batch", {"patch": 0}, "patch: expected a divisor of 8 and 12, got 0"),
    ("patch_batch", {"pad": 8}, "pad: expected at least 0 and less than the image's 8 pixels, got 8"),
    ("patch_batch", {"pad": -1}, "pad: expected at least 0 and less than the image's 8 pixels, got -1"),
    ("patch_batch", {"pad_mode": "edge"}, "pad_mode: expected zero or reflect, got 'edge'"),
    ("patch_batch", {"dtype": torch.int8}, "dtype: expected float32, bfloat16 or float16, got torch.int8"),
    ("patch_batch", {"dtype": "float32"}, "dtype: expected float32, bfloat16 or float16, got 'float32'"),
    ("patch_batch", {"pixels": CELLS}, "pixels: expected uint8 (S, H, W, 3)"),  # with rows
    ("patch_batch", {"pixels": CELLS[:, :, :3], "rows_B": None}, "pixels: expected uint8 (B, G, 3, G, 3, 3)"),
    ("patch_tokens", {"visible": 0}, "visible: expected 1 to 3 of 4 patches, got 0"),
    ("patch_tokens", {"visible": N}, "visible: expected 1 to 3 of 4 patches, got 4"),
    ("patch_tokens", {"maps": ones(7, D, 2, 2)}, "maps: expected 2 * 4 maps as places_BN has entries, got 7"),
    ("patch_tokens", {"count": -1}, "count: expected at least 0, got -1"),
    ("location_head", {"h_BmD": ones(B, 0, D), "places_Bm": ones(B, 0, dtype=torch.int64)}, "h_BmD: expected at least"),
]


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize(("operation", "changes", "message"), VALUES)
def test_wrong_values(operation: str, changes: Arguments, message: str, kernels: Any) -> None:
    with using(kernels):
        assert refused(operation, changes).startswith(message)


def questions(m: int, D: int) -> Arguments:
    places = torch.arange(m, device=DEVICE).expand(B, m)
    return {"u_BD": ones(B, D), "positions_ND": ones(m, D), "places_Bm": places, "h_BmD": ones(B, m, D)}


WIDE: list[tuple[str, Arguments, str]] = [
    ("patch_batch", {"dtype": torch.float64}, "dtype: expected float32, bfloat16 or float16, got torch.float64"),
    ("channel_sums", {"maps": ones(2, D, 1, 1).double()}, "maps: expected float32 or bfloat16 or float16 (M, D, h, w)"),
    ("patch_tokens", {"maps": ones(8, D, 1, 1).double()}, "maps: expected float32 or bfloat16 or float16 (B * N, D"),
    ("patch_tokens", {"u0_D": ones(D).double()}, "u0_D: expected float32 or bfloat16 or float16 (16)"),
    ("location_head", {"h_BmD": ones(B, m, D).double()}, "h_BmD: expected float32 or bfloat16 or float16 (B, m, D)"),
    ("location_head", questions(65, 16), "h_BmD: the kernel takes up to 64 masked patches, got m = 65"),
    ("location_head", {"positions_ND": ones(65, D)}, "positions_ND: the kernel takes up to 64 places, got N = 65"),
    ("location_head", questions(2, 24), "h_BmD: the kernel takes a multiple of 16 features, got D = 24"),
]


@pytest.mark.parametrize(("operation", "changes", "message"), WIDE)
def test_what_kernels_alone_refuse(operation: str, changes: Arguments, message: str) -> None:
    run, make = OPERATIONS[operation]
    with using("on"):
        assert refused(operation, changes).startswith(message)
    with using("off"):
        run(**(make() | changes))


def whole(*values: Any) -> Tensor:
    return torch.tensor(values, device=DEVICE)


UNREADABLE: list[tuple[str, Arguments, str]] = [
    ("patch_batch", {"rows_B": whole(0, S)}, "rows_B: expected values in [0, 5), got 0 to 5"),
    ("patch_batch", {"rows_B": whole(-1, 0)}, "rows_B: expected values in [0, 5), got -1 to 0"),
    ("patch_batch", {"corner_B2": whole([0, 3], [1, 1])}, "corner_B2: expected values in [0, 3), got 0 to 3"),
    ("patch_batch", {"places_BN": orders(B, 6).to(DEVICE) + 1}, "places_BN: expected values in [0, 6), got 1 to 6"),
    ("patch_tokens", {"places_BN": orders(B, N).to(DEVICE) - 1}, "places_BN: expected values in [0, 4), got -1 to 2"),
    (
        "patch_tokens",
        {"places_BN": whole([0, 1, 2, 3], [0, 1, 2, 0])},
        "places_BN: expected distinct values in each row",
    ),
    ("location_head", {"places_Bm": whole([0, 1], [4, 2])}, "places_Bm: expected values in [0, 4), got 0 to 4"),
    ("location_head", {"places_Bm": whole([0, 1], [2, 2])}, "places_Bm: expected distinct values in each row, row 1"),
]


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize(("operation", "changes", "message"), UNREADABLE)
def test_values_that_the_debug_mode_reads(
    operation: str, changes: Arguments, message: str, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "DEBUG", True)
    run, make = OPERATIONS[operation]
    with using(kernels):
        assert refused(operation, changes).startswith(message)
        run(**make())


@pytest.mark.parametrize(("value", "debug"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_debug_mode_is_asked_for(value: str | None, debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSELFIE_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("FASTSELFIE_DEBUG", value)
    assert runpy.run_path(checks.__file__)["DEBUG"] is debug


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("operation", ["patch_batch", "patch_tokens", "location_head"])
@pytest.mark.parametrize("kernels", ["on", "off"])
def test_only_the_debug_mode_reads(operation: str, kernels: Any, debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake tensor has no values: reading one raises."""
    monkeypatch.setattr(checks, "DEBUG", debug)
    run, make = OPERATIONS[operation]
    with FakeTensorMode() as mode, using(kernels):
        given = {name: mode.from_tensor(v) if isinstance(v, Tensor) else v for name, v in make().items()}
        if debug:
            with pytest.raises(DataDependentOutputException):
                run(**given)
        else:
            run(**given)
