"""The Selfie network against a plain one with the same weights (`bench.baselines.plain_selfie`), and its settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.baselines.plain_selfie import PlainSelfie, load_from, plain_names
from fastselfie.config import PretrainConfig
from fastselfie.models.selfie import Selfie
from tests.small_networks import SETTINGS, assert_near, pretrain_config, question, randomise

FP64 = 1e-12  # fp64 all the way: rounding alone, 1.5e-14 when written
IMAGES = 3
POOLERS: list[dict[str, Any]] = [
    {}, {"pooler": "mean"}, {"pooler": "max"}, {"pooler": "none"}, {"pooler_depth": 0}, {"pooler_depth": 1},
]  # fmt: skip


def network_of(config: PretrainConfig) -> Selfie:
    torch.manual_seed(0)
    network = Selfie(config).double()
    randomise(network)
    return network


def plain_twin(network: Selfie, config: PretrainConfig) -> PlainSelfie:
    plain = PlainSelfie(config.width, config.grid, config.patch, config.visible, config.heads, config.dropout).double()
    load_from(plain, network.state_dict())
    return plain


def gradients(network: nn.Module, outputs: Iterable[Tensor], directions: Iterable[Tensor]) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    found = torch.autograd.grad(
        list(outputs), list(parameters.values()), list(directions), materialize_grads=True, retain_graph=True
    )
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("keep", [0.75, 0.5])
@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_same_as_the_plain_network(settings: dict[str, Any], keep: float, training: bool) -> None:
    """Features, loss, right answers, every parameter's gradient and, in training, the batch statistics."""
    config = pretrain_config(**settings, keep=keep, dropout=0.0 if training else 0.1)
    network = network_of(config).train(training)
    plain = plain_twin(network, config).train(training)
    patches, places_BN = question(config, IMAGES)
    names = plain_names(plain)

    generator = torch.Generator().manual_seed(1)
    ours, theirs = network.encode(patches, places_BN), plain.encode(patches, places_BN)
    directions = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in theirs]
    for what, a, b in zip(("u", "h"), ours, theirs, strict=True):
        assert_near(a, b, FP64, what)
    expected = gradients(plain, theirs, directions)
    for name, gradient in gradients(network, ours, directions).items():
        assert_near(gradient, expected[names[name]], FP64, name)

    state = dict(plain.named_buffers())
    for name, buffer in network.named_buffers():
        assert_near(buffer, state[names[name]], FP64, name)

    (loss, right), (plain_loss, plain_right) = network(patches, places_BN), plain(patches, places_BN)
    assert loss.dtype == torch.float64, "fp32 at least, and wider where the inputs are"
    assert right.dtype == torch.int64
    assert right == plain_right
    assert_near(loss, plain_loss, FP64, "loss")
    expected = gradients(plain, [plain_loss], [torch.ones_like(plain_loss)])
    for name, gradient in gradients(network, [loss], [torch.ones_like(loss)]).items():
        assert_near(gradient, expected[names[name]], FP64, name)


def test_the_plain_network_takes_every_weight_once() -> None:
    config = pretrain_config()
    network = network_of(config)
    plain = plain_twin(network, config)
    state = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, ours in plain_names(plain).items():
        torch.testing.assert_close(state[ours], network.state_dict()[name], rtol=0, atol=0)
    complete = dict(network.state_dict())
    for broken in (complete | {"more": torch.zeros(1)}, {n: v for n, v in complete.items() if n != "pooler.u0"}):
        with pytest.raises(KeyError):
            load_from(plain, broken)
    with pytest.raises(ValueError, match=r"pooler\.u0"):
        load_from(plain, complete | {"pooler.u0": torch.zeros(1)})


@pytest.mark.parametrize(
    ("settings", "keep", "visible"),
    [(SETTINGS[0], 0.75, 12), (SETTINGS[0], 0.5, 8), (SETTINGS[1], 0.75, 37), (SETTINGS[1], 0.5, 25)],
)
def test_splits(settings: dict[str, Any], keep: float, visible: int) -> None:
    config = pretrain_config(**settings, keep=keep)
    patches, places_BN = question(config, 2)
    u_BD, h_BmD = network_of(config).encode(patches, places_BN)
    assert u_BD.shape == (2, 64)
    assert h_BmD.shape == (2, config.patches - visible, 64)
    assert (visible, config.patches - visible) in {(12, 4), (8, 8), (37, 12), (25, 24)}


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
@pytest.mark.parametrize("pooler", POOLERS, ids=str)
def test_the_loss_depends_on_visible_pixels(settings: dict[str, Any], pooler: dict[str, Any]) -> None:
    """In evaluation mode, where batch norm does not join patches: on every visible patch through u, with a maximum on
    those that are largest somewhere, and on none without a pooler or with one without blocks. On masked ones always."""
    config = pretrain_config(**settings, **pooler)
    network = network_of(config).eval()
    patches, places_BN = question(config, IMAGES)
    loss, _ = network(patches.requires_grad_(), places_BN)
    (gradient,) = torch.autograd.grad(loss, patches)
    strength_BN = gradient.flatten(1).abs().amax(dim=1).unflatten(0, (IMAGES, config.patches))
    visible_Bn, masked_Bm = strength_BN.tensor_split([config.visible], dim=1)
    assert (masked_Bm > 1e-6 * strength_BN.max()).all()
    if config.pooler == "max":
        assert (visible_Bn > 1e-6 * strength_BN.max()).any(dim=1).all()
    elif config.pooler != "none" and config.pooler_depth:
        assert (visible_Bn > 1e-6 * strength_BN.max()).all()
    else:
        assert (visible_Bn == 0).all()


@pytest.mark.parametrize("positions", ["both", "query"])
@pytest.mark.parametrize("pooler", POOLERS, ids=str)
def test_every_parameter_is_used(pooler: dict[str, Any], positions: Any) -> None:
    """With one that is not, DDP would wait for its gradient without end."""
    config = pretrain_config(**pooler, positions=positions)
    network = network_of(config)
    loss, _ = network(*question(config, IMAGES))
    names, parameters = zip(*network.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        assert bool((gradient != 0).any()), name


@pytest.mark.parametrize("kind", ["mean", "max"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_plain_poolers_see_features_and_positions(settings: dict[str, Any], kind: Any) -> None:
    """u patch by patch: the trunk on each visible patch, its place's vector added."""
    config = pretrain_config(**settings, pooler=kind)
    network = network_of(config).eval()
    patches, places_BN = question(config, 2)
    with torch.no_grad():
        u_BD, _ = network.encode(patches, places_BN)
        e_ND = network.positions()
        for image in range(2):
            tokens = []
            for j in range(config.visible):
                index = image * config.patches + j
                tokens.append(network.trunk(patches[index : index + 1])[0] + e_ND[places_BN[image, j]])
            u_D = sum(tokens) / len(tokens) if kind == "mean" else torch.stack(tokens).max(dim=0).values
            assert isinstance(u_D, Tensor)
            assert_near(u_BD[image], u_D, FP64)


def test_images_are_apart_in_evaluation() -> None:
    """No image's loss depends on another's pixels: masked patches compete inside their image alone."""
    config = pretrain_config()
    network = network_of(config).eval()
    patches, places_BN = question(config, IMAGES)
    together, right = network(patches, places_BN)
    alone = [network(*pair) for pair in zip(patches.split(config.patches), places_BN.split(1), strict=True)]
    assert_near(together, torch.stack([loss for loss, _ in alone]).mean(), FP64)
    assert right == sum(count for _, count in alone)


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
@pytest.mark.parametrize("positions", ["both", "query"])
def test_where_positions_are_added(settings: dict[str, Any], positions: Any) -> None:
    config = pretrain_config(**settings, positions=positions)
    network = network_of(config).eval()
    patches, places_BN = question(config, IMAGES)
    u_BD, h_BmD = network.encode(patches, places_BN)
    loss, _ = network.judge(u_BD, h_BmD, places_BN)
    with torch.no_grad():
        for vectors in network.positions.parameters():
            vectors.add_(torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2)))
    other_u_BD, other_h_BmD = network.encode(patches, places_BN)
    other_loss, _ = network.judge(u_BD, h_BmD, places_BN)
    assert torch.equal(other_h_BmD, h_BmD)
    assert torch.equal(other_u_BD, u_BD) is (positions == "query")
    assert (other_loss - loss).abs() > 1e-3


@pytest.mark.parametrize(("logit_scale", "factor"), [("rsqrt", 1 / 8), ("none", 1.0)])
@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_the_loss_word_by_word(settings: dict[str, Any], logit_scale: Any, factor: float) -> None:
    """The paper's head as loops over images, places and candidates; D = 64."""
    config = pretrain_config(**settings, logit_scale=logit_scale)
    network = network_of(config).eval()
    patches, places_BN = question(config, IMAGES)
    with torch.no_grad():
        u_BD, h_BmD = network.encode(patches, places_BN)
        e_ND = network.positions()
        losses, right = [], 0
        for u_D, h_mD, places_N in zip(u_BD, h_BmD, places_BN, strict=True):
            for j, place in enumerate(places_N[config.visible :]):
                v_D = u_D + e_ND[place]
                scores = torch.stack([factor * torch.dot(v_D, h_D) for h_D in h_mD])
                losses.append(scores.exp().sum().log() - scores[j])
                right += int(scores.argmax()) == j
        loss, counted = network(patches, places_BN)
    assert_near(loss, torch.stack(losses).mean(), FP64)
    assert counted == right
    assert len(losses) == IMAGES * (config.patches - config.visible)


def test_parameters_of_the_whole_network() -> None:
    """Trunk, pooler and the table: the paper's "roughly 25M"."""
    full = PretrainConfig(recipe="test")
    assert sum(p.numel() for p in Selfie(full).parameters()) == 8_532_032 + 16_545_664 + 16 * 1024 == 25_094_080
