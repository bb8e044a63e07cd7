"""The fused trunk inside the network: loss, every gradient, statistics and a run's losses are plain PyTorch's.

Rounding grows through thirteen blocks: of the largest value 1e-5 is allowed, as plain PyTorch in fp32 nearly is off by.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastselfie.config import PretrainConfig
from fastselfie.kernels import using
from fastselfie.kernels.dispatch import Trunk
from fastselfie.models import fused
from fastselfie.models.convolution import channels_last
from fastselfie.models.resnet import Bottleneck
from fastselfie.models.selfie import Selfie
from fastselfie.training.pretrain import pretrain
from tests.kernel_checks import DEVICE
from tests.small_networks import assert_near, question, randomise

pytest.importorskip("triton")
QUARTER: dict[str, Any] = {"width": 0.25, "image_size": 16, "heads": 4, "keep": 0.5}  # 2 x 2 patches, D = 256
IMAGES = 2


def network(**settings: Any) -> Selfie:
    torch.manual_seed(0)
    made = Selfie(PretrainConfig(recipe="test", dropout=0.0, **QUARTER, **settings))
    randomise(made)
    channels_last(made)
    return made.to(DEVICE)


def results(model: Selfie, kernels: Any, trunk: Trunk, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Of a copy: the loss, and by their names gradients and running statistics."""
    own = copy.deepcopy(model).to(dtype)
    patches, places_BN = question(PretrainConfig(recipe="test", **QUARTER), images=IMAGES)
    with using(kernels, trunk):
        loss, _ = own(patches.to(DEVICE, dtype), places_BN.to(DEVICE))
        names, parameters = zip(*own.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
    return {"loss": loss.detach(), **dict(zip(names, gradients, strict=True)), **dict(own.named_buffers())}


@pytest.fixture
def fused_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each fused trunk."""
    seen: list[int] = []
    run = fused.forward
    monkeypatch.setattr(fused, "forward", lambda blocks, x: seen.append(len(blocks)) or run(blocks, x))  # type: ignore[func-returns-value]
    return seen


@pytest.mark.parametrize("training", [True, False])
def test_the_whole_network(training: bool, fused_runs: list[int]) -> None:
    """Also with plain operations behind the fused trunk: those take the gradient through their own sums."""
    model = network().train(training)
    truth = results(model, "off", "plain", torch.float64)
    for name, tensor in results(model, "off", "plain").items():
        assert_near(tensor, truth[name], 1e-5, f"plain: {name}")
    assert fused_runs == []
    for kernels in ("on", "off") if training else ("off",):
        ours = results(model, kernels, "fused")
        assert fused_runs.pop() == 13
        assert ours.keys() == truth.keys()
        for name, tensor in ours.items():
            assert_near(tensor, truth[name], 1e-5, f"kernels {kernels}: {name}")


def test_the_gradient_of_a_dense_3x3_kernel_stays_wide() -> None:
    """Of four products a tap on 2x2 maps, added in fp32: rounded to the maps' dtype it would equal its rounding."""
    torch.manual_seed(0)
    block = Bottleneck(64, 16, 1).to(DEVICE)
    x = torch.randn(6, 64, 2, 2).to(DEVICE, torch.float16, memory_format=torch.channels_last)
    with using("off", trunk="fused"):
        y, _ = fused.forward([block], x)
    y.float().square().sum().backward()
    for conv in block.products():
        gradient = conv.weight.grad
        assert gradient is not None
        assert gradient.dtype == torch.float32
        assert not torch.equal(gradient, gradient.half().float())


def curve(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run(tmp_path: Path, fused_runs: list[int]) -> None:
    losses = {}
    for trunk in ("plain", "fused"):
        settings: dict[str, Any] = {
            **QUARTER, "recipe": "tiny", "data": "synthetic:10", "held_out": 0, "batch_size": 2, "steps": 2, "lr": 1e-4,
            "log_every": 1, "evaluate_every": 9, "precision": "fp32", "compile": "off", "device": DEVICE.type,
            "pad": 2, "trunk": trunk, "kernels": "off", "out": tmp_path / trunk,
        }  # fmt: skip
        before = len(fused_runs)
        losses[trunk] = curve(pretrain(PretrainConfig(**settings)))
        assert (len(fused_runs) > before) == (trunk == "fused")
        assert json.loads((tmp_path / trunk / "config.json").read_text())["settings"]["trunk"] == trunk
    assert len(set(losses["fused"])) == 2, "it trains"
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-4)
