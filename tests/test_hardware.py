"""What `auto` means on a machine, and why: CUDA is imagined here."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from fastselfie.config import PretrainConfig
from fastselfie.errors import UserError
from fastselfie.kernels import dispatch
from fastselfie.training.hardware import choose_kernels, choose_sgd, resolve


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside the tests, which may have kernels interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device to ask."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
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
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    choice = choose_kernels("auto", "cuda")
    assert (choice.value, "compute capability 8.0" in choice.why) == ("off", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(dispatch, "_IS_NVIDIA", False)
    assert choose_kernels("auto", "cuda").value == "off"


def test_apex_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--sgd apex: updates on a CUDA device alone; use --sgd torch"):
        choose_sgd("apex", "cpu")
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))  # another project's package of that name
    with pytest.raises(UserError, match=r"--sgd apex: .*build NVIDIA Apex from source") as refusal:
        choose_sgd("apex", "cuda")
    assert "\n" not in str(refusal.value)
