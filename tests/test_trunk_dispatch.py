"""Whether the trunk runs fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastselfie.config import ModelConfig
from fastselfie.kernels import dispatch, using
from fastselfie.kernels.dispatch import fused_trunk
from fastselfie.models import fused
from fastselfie.models.resnet import Bottleneck, ResNetV2
from tests.kernel_checks import DEVICE, needs_interpreter
from tests.trunk_cases import maps

pytest.importorskip("triton")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A device, on which the fused trunk is faster; grows by the index of each that is asked for its name."""
    asked: list[Any] = []

    def name(index: int | None = None) -> str:
        asked.append(index)
        return "fast one"

    monkeypatch.setattr(dispatch, "FASTER_TRUNK", frozenset({"fast one"}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(dispatch, "device_name", name)
    return asked


def test_auto_runs_it_where_it_was_measured_to_be_faster(faster: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_trunk(CUDA, BF16, fits=True)
    assert fused_trunk(CUDA, torch.float16, fits=True)
    assert faster == [0, 0]
    assert not fused_trunk(CUDA, FP32, fits=True)
    assert not fused_trunk(CUDA, BF16, fits=False)
    assert not fused_trunk(CPU, BF16, fits=True)
    monkeypatch.setattr(dispatch, "FASTER_TRUNK", frozenset({"fast"}))
    assert not fused_trunk(CUDA, BF16, fits=True)
    monkeypatch.setattr(dispatch, "FASTER_TRUNK", frozenset({"fast one"}))
    for lacking in ("_HAS_TRITON", "_IS_NVIDIA"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, lacking, False)
            assert not fused_trunk(CUDA, BF16, fits=True)


def test_auto_asks_no_device_while_none_is_known_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "FASTER_TRUNK", frozenset())
    monkeypatch.setattr(dispatch, "device_name", lambda *_: pytest.fail("asked"))
    assert not fused_trunk(CUDA, BF16, fits=True)


@pytest.mark.usefixtures("faster")
def test_what_was_asked_for_runs() -> None:
    with using("off", trunk="fused"):  # whatever the other kernels do
        for device, dtype in ((CPU, FP32), (CUDA, FP32), (CPU, BF16)):
            assert fused_trunk(device, dtype, fits=True)
            with pytest.raises(ValueError, match=r"trunk: the kernels take channels in multiples of 16, .* of 0.25"):
                fused_trunk(device, dtype, fits=False)
        with using("on", trunk="plain"):
            assert not fused_trunk(CUDA, BF16, fits=True)
            assert not fused_trunk(CUDA, BF16, fits=False)
        with using("on"):
            assert not fused_trunk(CPU, BF16, fits=True)
        assert fused_trunk(CPU, FP32, fits=True)
    assert not fused_trunk(CPU, FP32, fits=True)


def test_using_restores_what_was_chosen() -> None:
    def fail() -> None:
        with using("on", trunk="fused"):
            assert fused_trunk(CPU, FP32, fits=True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not fused_trunk(CPU, FP32, fits=True)


def test_using_refuses_other_words() -> None:
    word: Any = "on"
    with pytest.raises(ValueError, match="trunk: expected auto, fused or plain, got 'on'"), using("auto", trunk=word):
        pass
    with pytest.raises(ValueError, match="kernels: expected auto, on or off, got 'fused'"), using("fused"):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(
    ("sizes", "fits"), [((16, 16, 1), True), ((48, 80, 2), True), ((24, 16, 1), False), ((16, 8, 1), False)]
)
def test_channels_in_multiples_of_16_fit(sizes: tuple[int, int, int], fits: bool) -> None:
    blocks, x = [Bottleneck(16, 16, 1), Bottleneck(*sizes)], maps(1, 16, 2, 2)
    assert not fused.runs_fused(x, blocks) or x.is_cuda
    with using("off", trunk="fused"):
        if fits:
            assert fused.runs_fused(x, blocks)
        else:
            with pytest.raises(ValueError, match="multiples of 16"):
                fused.runs_fused(x, blocks)


@pytest.mark.parametrize(("width", "fits"), [(0.25, True), (0.75, True), (0.125, False), (0.3125, False)])
def test_widths_in_multiples_of_a_quarter_fit(width: float, fits: bool) -> None:
    network, x = ResNetV2(ModelConfig(width=width, heads=1), stages=4).to(DEVICE), torch.zeros(2, 3, 8, 8).to(DEVICE)
    blocks = [block for stage in network.stages for block in stage]  # type: ignore[attr-defined]
    with using("off", trunk="fused"):
        if fits:
            assert fused.runs_fused(x, blocks)
        else:
            with pytest.raises(ValueError, match=r"multiples of 0\.25"):
                network(x)
    if not fits:
        assert network(x).shape == (2, network.features)


@needs_interpreter
def test_on_a_cpu_plain_pytorch_runs_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(fused, "forward", lambda blocks, x: seen.append("fused") or (x, None))  # type: ignore[func-returns-value]
    network = ResNetV2(ModelConfig(width=0.25, heads=1), stages=3)
    for kernels in ("auto", "on", "off"):
        for trunk in ("auto", "plain"):
            with using(kernels, trunk):
                assert network.forward_stages(torch.zeros(1, 3, 8, 8))[1] is None
    assert seen == []
    with using("auto", "fused"):
        network.forward_stages(torch.zeros(1, 3, 8, 8))
    assert seen == ["fused"]
