"""The two encoders that are finetuned: what they take from a pretrained network, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier, encoder
from fastselfie.models.selfie import Selfie
from tests.small_networks import SETTINGS, assert_near, finetune_config, pretrain_config, randomise


def pretrained_state(**settings: Any) -> dict[str, Tensor]:
    """The weights of a Selfie network, none of them neutral."""
    network = Selfie(pretrain_config(**settings))
    randomise(network, seed=3)
    return network.state_dict()


def fresh(network: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_resnet50_takes_the_trunk(settings: dict[str, Any]) -> None:
    """Stem and stages 1 to 3 bit for bit, P's final norm as stage 4's first; the rest stays as it was."""
    state = pretrained_state(**settings)
    network = ResNet50Classifier(finetune_config(**settings), classes=10)
    before = fresh(network)
    network.load_pretrained(state)
    after = network.state_dict()
    taken = set()
    for name, value in state.items():
        if name.startswith(("trunk.stem.", "trunk.stages.")):
            assert torch.equal(after[name], value)
            taken.add(name)
    for part in ("weight", "bias", "running_mean", "running_var"):
        name = f"trunk.stages.3.0.norm1.{part}"
        assert torch.equal(after[name], state[f"trunk.norm.{part}"])
        assert not torch.equal(after[name], before[name])
        taken.add(name)
    assert len(taken) == 1 + 13 * (3 * 4 + 3) + 3 + 4  # stem, 13 blocks, 3 shortcuts, the norm
    left = set(after) - taken
    assert all(torch.equal(after[name], before[name]) for name in left)
    assert {name for name in left if not name.startswith("trunk.stages.3.")} == {
        "classifier.weight", "classifier.bias",
        "trunk.norm.weight", "trunk.norm.bias", "trunk.norm.running_mean", "trunk.norm.running_var",
    }  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
@pytest.mark.parametrize("positions", ["both", "query"])
def test_attention_classifier_takes_all(settings: dict[str, Any], positions: Any) -> None:
    """Trunk, pooler and positions; no positions where the features get none."""
    state = pretrained_state(**settings, positions=positions)
    network = AttentionClassifier(finetune_config(**settings, positions=positions), classes=10)
    before = fresh(network)
    network.load_pretrained(state)
    after = network.state_dict()
    for name, value in state.items():
        if positions == "query" and name.startswith("positions."):
            assert name not in after
        else:
            assert torch.equal(after[name], value)
    assert set(after) - set(state) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(after[name], before[name]) for name in set(after) - set(state))


@pytest.mark.parametrize("positions", ["both", "query"])
def test_a_fresh_pooler_is_left_alone(positions: Any) -> None:
    """The trunk alone comes from the run, which may have had a pooler of another kind, or none."""
    config = finetune_config(encoder="resnet36-attention", positions=positions, pooler_weights="fresh")
    for settings in ({}, {"pooler": "none"}, {"pooler_depth": 1}, {"pooler": "mean"}):
        state = pretrained_state(**settings)
        network = AttentionClassifier(config, classes=10)
        before = fresh(network)
        network.load_pretrained(state)
        for name, value in network.state_dict().items():
            assert torch.equal(value, state[name] if name.startswith("trunk.") else before[name]), name
        with pytest.raises(KeyError, match="unknown"):
            network.load_pretrained(state | {"trunk.more": torch.zeros(1)})


def by_hand(images: Tensor, grid: int) -> list[Tensor]:
    """Patches (B, 3, P, P), row by row, sliced out of the images."""
    side = images.shape[2] // grid
    rows = [images[:, :, side * r : side * (r + 1)] for r in range(grid)]
    return [row[:, :, :, side * c : side * (c + 1)] for row in rows for c in range(grid)]


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
@pytest.mark.parametrize("pooler", ["attention", "mean", "max"])
@pytest.mark.parametrize("positions", ["both", "query"])
def test_patches_give_pretrainings_u(settings: dict[str, Any], pooler: Any, positions: Any) -> None:
    """Patch by patch: the pretrained network's own summary, were all patches visible, and the classifier on it."""
    selfie = Selfie(pretrain_config(**settings, pooler=pooler, positions=positions))
    randomise(selfie, seed=3)
    config = finetune_config(
        **settings, encoder="resnet36-attention", pooler=pooler, positions=positions, trunk_input="patches"
    )
    network = AttentionClassifier(config, classes=10)
    network.load_pretrained(selfie.state_dict())
    selfie, network = selfie.double().eval(), network.double().eval()
    images = torch.randn(2, 3, config.image_size, config.image_size, dtype=torch.float64)
    with torch.no_grad():
        h_BND = torch.stack([selfie.trunk(patches) for patches in by_hand(images, config.grid)], dim=1)
        if positions == "both":
            h_BND = h_BND + selfie.positions()
        assert selfie.pooler is not None
        u_BD = selfie.pooler(selfie.pooler.with_u0(h_BND))
        expected = u_BD @ network.classifier.weight.T + network.classifier.bias
        assert_near(network(images), expected, 1e-12)
        if pooler != "attention":
            least = h_BND.mean(dim=1) if pooler == "mean" else h_BND.max(dim=1).values
            assert_near(u_BD, least, 1e-12)


@pytest.mark.parametrize(("settings", "side"), [(SETTINGS[0], 8), (SETTINGS[1], 14)], ids=["4x4", "7x7"])
def test_resnet50_patch_by_patch(settings: dict[str, Any], side: int) -> None:
    """Stages 1 to 3 of each patch alone, its map laid into the whole one by hand; then stage 4, norm, average."""
    config = finetune_config(**settings, trunk_input="patches")
    network = encoder(config, 10)
    assert isinstance(network, ResNet50Classifier)
    randomise(network, seed=3)
    network.double().eval()
    images = torch.randn(2, 3, config.image_size, config.image_size, dtype=torch.float64)
    trunk = network.trunk
    with torch.no_grad():
        whole = torch.zeros(2, 64, side, side, dtype=torch.float64)
        for place, x in enumerate(by_hand(images, config.grid)):
            row, column = divmod(place, config.grid)
            x = trunk.stem(x)
            for stage in list(trunk.stages)[:3]:
                x = stage(x)
            whole[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = x
        y = torch.relu(trunk.norm(trunk.stages[3](whole)))
        expected = network.classifier(y.sum(dim=(2, 3)) / (side // 2) ** 2)
        assert_near(network(images), expected, 1e-12)
        as_images = ResNet50Classifier(finetune_config(**settings), classes=10).double().eval()
        as_images.load_state_dict(network.state_dict())
        assert bool((as_images(images) - expected).abs().max() > 1e-3), "a patch's border is padded"


@pytest.mark.parametrize("name", ["resnet50", "resnet36-attention"])
@pytest.mark.parametrize("pooler", ["attention", "max"])
def test_patches_reach_every_parameter(name: Any, pooler: Any) -> None:
    config = finetune_config(
        encoder=name, trunk_input="patches", pooler=pooler if name == "resnet36-attention" else "attention"
    )
    network = encoder(config, 10)
    scores_BC = network(torch.randn(3, 3, 32, 32))
    names, parameters = zip(*network.named_parameters(), strict=True)
    for parameter, gradient in zip(names, torch.autograd.grad(scores_BC.square().sum(), parameters), strict=True):
        assert bool((gradient != 0).any()), parameter


def test_the_pretrained_weights_are_copied() -> None:
    state = pretrained_state()
    kept = {name: value.clone() for name, value in state.items()}
    for config in (finetune_config(), finetune_config(encoder="resnet36-attention")):
        network = encoder(config, 10)
        network.load_pretrained(state)
        with torch.no_grad():
            for tensor in network.parameters():
                tensor.zero_()
    assert all(torch.equal(state[name], value) for name, value in kept.items())


@pytest.mark.parametrize("name", ["resnet50", "resnet36-attention"])
def test_refused_weights(name: Any) -> None:
    """A name too many, one too few, a shape of another width, and a control's weights where A is needed."""
    network = encoder(finetune_config(encoder=name), 10)
    state = pretrained_state()
    with pytest.raises(KeyError, match=r"unknown \['trunk.more'\]"):
        network.load_pretrained(state | {"trunk.more": torch.zeros(1)})
    for missing in ("trunk.stem.conv.weight", "trunk.stages.2.5.norm3.running_var"):
        with pytest.raises(KeyError, match=rf"missing \['{missing}'\]"):
            network.load_pretrained({key: value for key, value in state.items() if key != missing})
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.load_pretrained(pretrained_state(width=1 / 8))
    control = pretrained_state(pooler="none")
    if name == "resnet50":
        network.load_pretrained(control)
    else:
        with pytest.raises(KeyError, match=r"missing \['pooler.u0'"):
            network.load_pretrained(control)


def test_a_missing_final_norm_is_refused() -> None:
    """Stage 4 is fresh but for its first norm, which comes from P: weights without one do not fit."""
    state = {name: value for name, value in pretrained_state().items() if not name.startswith("trunk.norm.")}
    with pytest.raises(KeyError, match="norm"):
        ResNet50Classifier(finetune_config(), 10).load_pretrained(state)


@pytest.mark.parametrize(("settings", "side"), [(SETTINGS[0], 8), (SETTINGS[1], 14)], ids=["4x4", "7x7"])
@pytest.mark.parametrize("positions", ["both", "query"])
def test_attention_classifier_by_hand(settings: dict[str, Any], side: int, positions: Any) -> None:
    """Each patch's feature is the mean of its 2x2 block of the map, row by row, plus its own position vector."""
    config = finetune_config(**settings, positions=positions)
    network = AttentionClassifier(config, classes=10).double().eval()
    randomise(network)
    images = torch.randn(2, 3, config.image_size, config.image_size, dtype=torch.float64)
    with torch.no_grad():
        map_BDhw = network.trunk.forward_map(images)
        assert map_BDhw.shape == (2, 64, side, side)
        tokens = []
        for row in range(config.grid):
            for column in range(config.grid):
                block = map_BDhw[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                token_BD = block.sum(dim=(2, 3)) / 4
                if network.positions is not None:
                    token_BD = token_BD + network.positions()[config.grid * row + column]
                tokens.append(token_BD)
        u0_BD = network.pooler.u0.expand(2, -1)
        u_BD = network.pooler(torch.stack([u0_BD, *tokens], dim=1))
        expected = u_BD @ network.classifier.weight.T + network.classifier.bias
        assert (network.positions is None) is (positions == "query")
        assert_near(network(images), expected, 1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_resnet50_by_hand(settings: dict[str, Any]) -> None:
    config = finetune_config(**settings)
    network = ResNet50Classifier(config, classes=10).double().eval()
    images = torch.randn(2, 3, config.image_size, config.image_size, dtype=torch.float64)
    with torch.no_grad():
        map_BDhw = network.trunk.forward_map(images)
        assert map_BDhw.shape[1] == 128
        assert (map_BDhw >= 0).all()
        mean_BD = map_BDhw.flatten(2).sum(dim=2) / map_BDhw.shape[2] ** 2
        expected = mean_BD @ network.classifier.weight.T + network.classifier.bias
        assert_near(network(images), expected, 1e-12)


def test_encoder_makes_what_the_setting_names() -> None:
    assert isinstance(encoder(finetune_config(encoder="resnet50"), 7), ResNet50Classifier)
    network = encoder(finetune_config(encoder="resnet36-attention"), 7)
    assert isinstance(network, AttentionClassifier)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
