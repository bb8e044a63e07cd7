"""ResNet-50v2: parameter counts by arithmetic and against the published one, map sizes, initial weights, width."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastselfie.models.encoders import ResNet50Classifier
from fastselfie.models.resnet import ResNetV2, trunk
from fastselfie.models.statistics import SynchronisedNorm, synchronised
from fastselfie.models.weights import load_weights
from tests.small_networks import SETTINGS, finetune_config, model_config


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_of_resnet50_are_the_published_number() -> None:
    """torchvision publishes 25,557,032 for v1 with 1,000 classes. Pre-activation changes norms (2 values a channel):

    - gone: the stem's (64 channels) and the four in shortcuts (256 + 512 + 1024 + 2048);
    - the first norm of a stage's first block has the block's input channels, where v1's last norm has its outputs:
      64 - 256, 256 - 512, 512 - 1024, 1024 - 2048;
    - new: the final one (2048).
    """
    stem, shortcuts, final = 64, 256 + 512 + 1024 + 2048, 2048
    first = (64 - 256) + (256 - 512) + (512 - 1024) + (1024 - 2048)
    expected = 25_557_032 + 2 * (-stem - shortcuts + first + final)
    assert expected == 25_549_352
    full = finetune_config(image_size=224, patch=32, width=1.0, heads=32)
    assert count(ResNet50Classifier(full, 1000)) == expected


@pytest.mark.parametrize(("settings", "stem"), [(SETTINGS[0], 3 * 3 * 3 * 64), (SETTINGS[1], 7 * 7 * 3 * 64)])
def test_parameters_of_the_trunk(settings: dict[str, Any], stem: int) -> None:
    total, inputs = stem, 64
    for C, blocks in ((64, 3), (128, 4), (256, 6)):
        total += inputs * 4 * C  # shortcut
        for _ in range(blocks):
            total += inputs * C + 9 * C * C + C * 4 * C + 2 * (inputs + C + C)
            inputs = 4 * C
    total += 2 * inputs
    assert total - stem == 8_530_304  # 8,532,032 with the 3x3 stem
    assert count(trunk(model_config(**settings, width=1.0, heads=32))) == total


def sides(network: ResNetV2, images: Tensor) -> list[int]:
    """Sides of the maps that enter stage 1 and that each stage puts out."""
    found: list[int] = []
    for part in (network.stem, *network.stages):
        part.register_forward_hook(lambda module, arguments, y: found.append(y.shape[2]))
    network.eval()(images)
    return found


@pytest.mark.parametrize("settings", SETTINGS)
def test_maps_of_patches_are_8_4_2_in_both_settings(settings: dict[str, Any]) -> None:
    config = model_config(**settings)
    patches = torch.randn(2, 3, config.patch, config.patch)
    assert sides(trunk(config), patches) == [8, 8, 4, 2]
    assert trunk(config)(patches).shape == (2, 64)


@pytest.mark.parametrize(
    ("settings", "expected"), [(SETTINGS[0], [32, 32, 16, 8, 4]), (SETTINGS[1], [56, 56, 28, 14, 7])]
)
def test_maps_of_whole_images(settings: dict[str, Any], expected: list[int]) -> None:
    config = model_config(**settings)
    images = torch.randn(2, 3, config.image_size, config.image_size)
    assert sides(trunk(config), images) == expected[:4]
    assert sides(ResNetV2(config, stages=4), images) == expected


@pytest.mark.parametrize(("width", "channels"), [(1 / 16, 4), (0.25, 16), (1.0, 64), (1.5, 96)])
def test_width_multiplies_all_channels(width: float, channels: int) -> None:
    network = ResNetV2(model_config(width=width), stages=4)
    assert network.features == 32 * channels
    convolutions = {
        name: (module.in_channels, module.out_channels)
        for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    }  # fmt: skip
    assert convolutions["stem.conv"] == (3, channels)
    inputs = channels
    for stage, blocks in enumerate((3, 4, 6, 3)):
        C = channels * 2**stage
        for block in range(blocks):
            path = f"stages.{stage}.{block}"
            assert convolutions[f"{path}.conv1"] == (inputs, C)
            assert convolutions[f"{path}.conv2"] == (C, C)
            assert convolutions[f"{path}.conv3"] == (C, 4 * C)
            assert convolutions.get(f"{path}.shortcut") == ((inputs, 4 * C) if block == 0 else None)
            inputs = 4 * C


@pytest.mark.parametrize("settings", SETTINGS)
def test_initial_weights(settings: dict[str, Any]) -> None:
    """He et al. 2015, fan-out: deviation sqrt(2 / (k * k * outputs)). Norms start neutral."""
    torch.manual_seed(0)
    network = ResNetV2(model_config(**settings, width=0.5), stages=4)
    seen = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            error = expected * (0.5 / weight.numel()) ** 0.5  # the standard error of a deviation
            assert abs(weight.std().item() - expected) < 5 * error
            assert abs(weight.mean().item()) < 5 * expected / weight.numel() ** 0.5
            assert weight.abs().max() > 2.2 * expected  # not cut off
            seen += 1
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            state = module.state_dict()
            assert (state["running_mean"] == 0).all()
            assert (state["running_var"] == 1).all()
    assert seen == 1 + 3 * 16 + 4


def test_synchronised_norms_are_the_same_network() -> None:
    """In one process they normalise as before, and weights keep their names."""
    torch.manual_seed(0)
    plain = trunk(model_config())
    synchronised_too = synchronised(copy.deepcopy(plain))
    assert any(isinstance(module, SynchronisedNorm) for module in synchronised_too.modules())
    assert synchronised_too.state_dict().keys() == plain.state_dict().keys()
    load_weights(synchronised_too, plain.state_dict())
    x = torch.randn(8, 3, 8, 8)
    assert synchronised_too(x).equal(plain(x))
    assert plain.norm.running_var is not None
    assert synchronised_too.state_dict()["norm.running_var"].equal(plain.norm.running_var)
