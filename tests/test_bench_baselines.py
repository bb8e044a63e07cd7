"""The peers' steps: each is a real step of its network, and the loop over patches computes the same features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.baselines import steps
from bench.baselines.per_patch import PerPatchSelfie
from bench.baselines.plain_selfie import PlainSelfie
from bench.report.counting import count
from fastselfie.config import PretrainConfig
from tests.small_networks import pretrain_config, question, randomise

CPU = torch.device("cpu")
CONFIG = replace(pretrain_config(), batch_size=2)
Make = Callable[[PretrainConfig, torch.device], steps.Step]


def test_the_loop_computes_the_same_where_statistics_are_given() -> None:
    shape = CONFIG.width, CONFIG.grid, CONFIG.patch, CONFIG.visible, CONFIG.heads
    plain, loop = PlainSelfie(*shape).double().eval(), PerPatchSelfie(*shape).double().eval()
    randomise(plain)
    loop.load_state_dict(plain.state_dict())
    patches, places = question(CONFIG, images=3)
    torch.testing.assert_close(loop.features(patches, 16), plain.features(patches, 16), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loop(patches, places)[0], plain(patches, places)[0], rtol=1e-12, atol=1e-12)
    loop.train(), plain.train()
    one_by_one = torch.stack([plain.features(patches[k::16], 1) for k in range(16)], dim=1).flatten(0, 1)
    torch.testing.assert_close(loop.features(patches, 16), one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [steps.eager_fp32, steps.per_patch, steps.eager_bf16])
def test_a_step_trains(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[PlainSelfie] = []
    plain_init = PlainSelfie.__init__

    def remembered(self: PlainSelfie, *args: object, **settings: object) -> None:
        plain_init(self, *args, **settings)  # type: ignore[arg-type]
        networks.append(self)

    monkeypatch.setattr(PlainSelfie, "__init__", remembered)
    torch.manual_seed(0)
    step = make(CONFIG, CPU)
    (network,) = networks
    before = {name: value.clone() for name, value in network.named_parameters()}
    step()
    for name, value in network.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_all_do_the_same_operations() -> None:
    """As many dense products whatever the layout and the number of calls."""
    counted = {make.__name__: count(make(CONFIG, CPU)).flops for make in (steps.eager_fp32, steps.per_patch)}
    assert len(set(counted.values())) == 1
    assert count(steps.eager_bf16(CONFIG, CPU)).flops == counted["eager_fp32"]
