"""What `auto` means on a machine, and why: CUDA is imagined here."""

from __future__ import annotations

import re
import sys
import types
from typing import Any, Literal

import pytest
import torch

from fastselfie.config import PretrainConfig
from fastselfie.errors import UserError
from fastselfie.kernels import cpu, dispatch
from fastselfie.training.hardware import (
    choose_kernels,
    choose_norm,
    choose_sgd,
    choose_trunk,
    resolve,
    set_convolutions,
)
from tests.imagined_apex import imagine_apex


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside the tests, which may have kernels interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device to ask."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(dispatch, "_IS_NVIDIA", True)


@pytest.mark.usefixtures("compiled", "nvidia")
def test_kernels() -> None:
    assert choose_kernels("auto", "cuda").value == "on"
    assert choose_kernels("auto", "cpu").value == "off"
    assert choose_kernels("off", "cuda").value == "off"
    assert choose_kernels("on", "cuda").value == "on"
    with pytest.raises(UserError, match="--kernels on: needs a CUDA device"):
        choose_kernels("on", "cpu")


def test_kernels_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    choice = choose_kernels("on", "cpu")
    assert (choice.value, choice.why) == ("on", "asked for, interpreted")
    assert choose_kernels("auto", "cpu").value == "off"


@pytest.mark.usefixtures("compiled")
def test_kernels_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    choice = choose_kernels("auto", "cuda")
    assert (choice.value, choice.why) == ("off", "kernels need triton (pip install triton)")
    with pytest.raises(UserError, match="--kernels on: needs triton"):
        choose_kernels("on", "cuda")


@pytest.mark.usefixtures("compiled", "nvidia")
def test_a_grid_too_large_for_its_kernel() -> None:
    """14 x 14 patches: 196."""
    config = PretrainConfig(recipe="test", image_size=224, patch=16)
    why = resolve(config, "cuda")["kernels"].why
    assert "64 patches, not 196" in why
    with pytest.raises(UserError, match="64 patches, not 196"):
        choose_kernels("on", "cuda", places=196)
    assert "patches" not in choose_kernels("auto", "cuda", places=64).why


@pytest.mark.usefixtures("compiled")
def test_devices_that_the_kernels_were_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    choice = choose_kernels("auto", "cuda")
    assert (choice.value, "compute capability 8.0" in choice.why) == ("off", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(dispatch, "_IS_NVIDIA", False)
    assert choose_kernels("auto", "cuda").value == "off"


def test_apex_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--sgd apex: updates on a CUDA device alone; use --sgd torch"):
        choose_sgd("apex", "cpu")
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))  # another project's package of that name
    with pytest.raises(UserError, match=r"--sgd apex: .*build NVIDIA Apex from source") as refusal:
        choose_sgd("apex", "cuda")
    assert "\n" not in str(refusal.value)
    for available in (False, True):  # without its CUDA extensions Apex can be imported, and no more
        imagine_apex(monkeypatch, available)
        if available:
            assert choose_sgd("apex", "cuda").value == "apex"
            continue
        with pytest.raises(UserError, match="--sgd apex: it was built without its CUDA extensions; build NVIDIA Apex"):
            choose_sgd("apex", "cuda")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"device": "cuda"}, "numba's batch norm is for a CPU"),
        ({"precision": "fp32"}, "numba's batch norm is for bf16"),
        ({"compiled": "on"}, "a compiled network has its own batch norm"),
        ({"sync_bn": True}, "--sync-bn has its own batch norm"),
        ({"lacks": "numba (pip install it)"}, "numba's batch norm needs numba (pip install it)"),
    ],
)
def test_norm(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], why: str | None) -> None:
    given: dict[str, Any] = {
        "device": "cpu",
        "precision": "bf16",
        "compiled": "off",
        "sync_bn": False,
        "lacks": None,
    } | changed
    lacks = given.pop("lacks")
    monkeypatch.setattr(cpu, "lacks", lambda: lacks)
    assert choose_norm("torch", **given).value == "torch"
    choice = choose_norm("auto", **given)
    if why is None:
        assert choice.value == choose_norm("numba", **given).value == "numba"
        return
    assert (choice.value, choice.why) == ("torch", why)
    with pytest.raises(UserError, match=re.escape(f"--norm numba: {why}; use --norm torch")):
        choose_norm("numba", **given)


NEVER = "fused is for bf16 and widths in multiples of 0.25"


@pytest.mark.usefixtures("compiled", "nvidia")
@pytest.mark.parametrize(
    ("asked", "device", "precision", "width", "value", "why"),
    [
        ("plain", "cuda", "bf16", 1.0, "plain", "asked for"),
        ("fused", "cuda", "bf16", 1.0, "fused", "asked for"),
        ("fused", "cuda", "fp32", 0.25, "fused", "asked for"),
        ("auto", "cpu", "bf16", 1.0, "plain", "plain PyTorch serves the CPU"),
        ("auto", "cuda", "fp32", 1.0, "plain", NEVER),
        ("auto", "cuda", "bf16", 0.3, "plain", NEVER),
        ("auto", "cuda", "bf16", 0.0625, "plain", NEVER),
        ("auto", "cuda", "bf16", 1.25, "plain", "no measured win here"),
    ],
)
def test_trunk(asked: str, device: str, precision: str, width: float, value: str, why: str,
               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(dispatch, "device_name", lambda: "a device")
    choice = choose_trunk(asked, device, precision, width, "on")
    assert (choice.value, choice.why) == (value, why)


@pytest.mark.usefixtures("compiled", "nvidia")
def test_trunk_where_it_was_measured_to_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "FASTER_TRUNK", frozenset({"a device"}))
    monkeypatch.setattr(dispatch, "device_name", lambda: "a device")
    choice = choose_trunk("auto", "cuda", "bf16", 1.0, "on")
    assert (choice.value, choice.why) == ("fused", "measured to win")
    assert choose_trunk("auto", "cuda", "bf16", 1.0, "off").value == "plain", "only a compiled step was measured"
    for precision, width in (("fp32", 1.0), ("bf16", 0.3)):
        assert choose_trunk("auto", "cuda", precision, width, "on").why == NEVER
    for asked, device in (("plain", "cuda"), ("auto", "cpu")):
        assert choose_trunk(asked, device, "bf16", 1.0, "on").value == "plain"
    monkeypatch.setattr(dispatch, "device_name", lambda: "another")
    assert choose_trunk("auto", "cuda", "bf16", 1.0, "on").value == "plain"


@pytest.mark.usefixtures("compiled", "nvidia")
def test_trunk_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (0.3, 0.0625, 1.1):
        with pytest.raises(UserError, match=f"--trunk fused: takes widths in multiples of 0.25, not {width}; or use"):
            choose_trunk("fused", "cuda", "bf16", width, "on")
    with pytest.raises(UserError, match=r"--trunk fused: needs a CUDA device, or TRITON_INTERPRET=1 .*--trunk plain"):
        choose_trunk("fused", "cpu", "fp32", 1.0, "on")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_trunk("fused", "cpu", "fp32", 1.0, "on").why == "asked for, interpreted"
    assert choose_trunk("plain", "cpu", "fp32", 1.0, "on").why == "asked for"
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    with pytest.raises(UserError, match="--trunk fused: needs triton"):
        choose_trunk("fused", "cuda", "bf16", 1.0, "on")
    assert choose_trunk("auto", "cuda", "bf16", 1.0, "on").why == "kernels need triton (pip install triton)"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_convolutions(precision: Literal["fp32", "bf16"], deterministic: bool) -> None:
    set_convolutions(PretrainConfig(recipe="test", precision=precision, deterministic=deterministic))
    assert torch.backends.cudnn.allow_tf32 == (precision == "bf16")
    assert torch.backends.cudnn.benchmark == (not deterministic)
