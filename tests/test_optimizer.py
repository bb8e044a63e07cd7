"""Learning rate against the closed form, which parameters decay, and SGD with Nesterov momentum written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastselfie.config import PretrainConfig
from fastselfie.models.encoders import encoder
from fastselfie.models.selfie import Selfie
from fastselfie.training import hardware
from fastselfie.training.optimizer import learning_rate, make_optimizer
from fastselfie.training.pretrain import pretrain
from tests.imagined_apex import imagine_apex
from tests.small_networks import finetune_config, pretrain_config


@pytest.mark.parametrize(
    ("step", "steps", "expected"),
    [
        # The paper's run: 100 steps of warm-up, then a cosine over 119,900.
        (0, 120_000, 0.004),
        (49, 120_000, 0.2),
        (99, 120_000, 0.4),
        (100, 120_000, 0.4),
        (100 + 119_900 // 4, 120_000, 0.2 * (1 + math.sqrt(0.5))),
        (100 + 119_900 // 2, 120_000, 0.2),
        (119_999, 120_000, 0.2 * (1 - math.cos(math.pi / 119_900))),
        # 50 steps: 10 of warm-up, then 40.
        (0, 50, 0.04),
        (9, 50, 0.4),
        (10, 50, 0.4),
        (30, 50, 0.2),
        (49, 50, 0.2 * (1 - math.cos(math.pi / 40))),
        # 499 and 500 steps: where the warm-up reaches its 100.
        (98, 499, 0.4),
        (98, 500, 0.396),
        # 5 steps: one of warm-up, at the peak. Fewer: none.
        (0, 5, 0.4),
        (1, 5, 0.4),
        (3, 5, 0.2),
        (0, 4, 0.4),
        (2, 4, 0.2),
        (0, 2, 0.4),
        (1, 2, 0.2),
        (0, 1, 0.4),
    ],
)
def test_learning_rate(step: int, steps: int, expected: float) -> None:
    assert learning_rate(step, steps, 0.4) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 5, 37, 500, 1000])
def test_learning_rate_rises_then_falls(steps: int) -> None:
    rates = [learning_rate(step, steps, 0.1) for step in range(steps)]
    top = min(100, steps // 5)
    assert all(a < b for a, b in pairwise(rates[:top]))
    assert all(a > b for a, b in pairwise(rates[top:]))
    assert max(rates) == 0.1
    assert min(rates) > 0


BLOCKS = {0: 3, 1: 4, 2: 6, 3: 3}
LINEAR = ("qkv", "out", "expand", "contract")
ATTENTION = {f"pooler.blocks.{block}.{layer}.weight" for block in range(3) for layer in LINEAR}


def convolutions(stages: int) -> set[str]:
    names = {"trunk.stem.conv.weight"}
    for stage in range(stages):
        names.add(f"trunk.stages.{stage}.0.shortcut.weight")
        for block in range(BLOCKS[stage]):
            names |= {f"trunk.stages.{stage}.{block}.conv{number}.weight" for number in (1, 2, 3)}
    return names


CLASSIFIER = {"classifier.weight"}
UNDECAYED = {"pooler.u0", "positions.row", "positions.column", "trunk.norm.weight", "trunk.norm.bias"}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Selfie(pretrain_config(image_size=224, patch=32)), convolutions(3) | ATTENTION),
        (lambda: encoder(finetune_config(), 10), convolutions(4) | CLASSIFIER),
        (lambda: encoder(finetune_config(encoder="resnet36-attention"), 10), convolutions(3) | ATTENTION | CLASSIFIER),
    ],
    ids=["selfie", "resnet50", "resnet36-attention"],
)
def test_what_decays(make: Callable[[], nn.Module], expected: set[str]) -> None:
    """Weights of convolutions and linear layers: not norms, biases, u0 or positions. Every parameter is trained."""
    network = make()
    names = {parameter: name for name, parameter in network.named_parameters()}
    optimizer = make_optimizer(network, pretrain_config(weight_decay=1e-4))
    decayed, rest = optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (1e-4, 0)
    found = [names[parameter] for parameter in decayed["params"]]
    others = [names[parameter] for parameter in rest["params"]]
    assert set(found) == expected
    assert sorted(found + others) == sorted(names.values())
    if isinstance(network, Selfie):
        assert set(others) >= UNDECAYED


class _Small(nn.Module):
    """A decayed and two undecayed parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.u0 = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.linear(x) * self.u0).square().sum()
        return y


@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0])
def test_three_steps_of_nesterov_by_hand(momentum: float) -> None:
    """m = mu m + g; p = p - lr (g + mu m), with g the gradient plus decay * p (Sutskever et al. 2013, torch's form)."""
    torch.manual_seed(0)
    network = _Small().double()
    decay = 0.1
    optimizer = make_optimizer(network, pretrain_config(lr=0.05, momentum=momentum, weight_decay=decay))
    values = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    speed = {name: torch.zeros_like(value) for name, value in values.items()}
    for rate in (0.05, 0.02, 0.03):
        x = torch.randn(4, 3, dtype=torch.float64)
        W, b, u = values["linear.weight"], values["linear.bias"], values["u0"]
        y = x @ W.T + b
        outer = 2 * y * u**2  # the gradient of sum (y u)^2 with regard to y
        gradient = {"linear.weight": outer.T @ x, "linear.bias": outer.sum(0), "u0": (2 * y**2 * u).sum(0)}
        gradient["linear.weight"] += decay * W
        for name, g in gradient.items():
            speed[name] = momentum * speed[name] + g
            values[name] = values[name] - rate * (g + momentum * speed[name])

        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        network(x).backward()
        optimizer.step()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.detach(), values[name], rtol=1e-12, atol=1e-12)


def test_apex_takes_steps_of_the_training_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NVIDIA's class imagined as torch's: the losses are those of ``--sgd torch``."""
    imagine_apex(monkeypatch)
    found = []
    for way in ("torch", "apex"):
        monkeypatch.setattr(hardware, "choose_sgd", lambda asked, device: hardware.Choice(value=asked, why="a test"))
        config = PretrainConfig(
            recipe="tiny", data="synthetic:20", width=0.125, batch_size=4, steps=3, lr=0.01, held_out=4, log_every=1,
            evaluate_every=9, device="cpu", precision="fp32", compile="off", sgd=way, out=tmp_path / way,
        )  # fmt: skip
        lines = (pretrain(config) / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line).get("loss") for line in lines])
    assert found[0] == found[1]
    assert len(set(found[0])) >= 3
