"""Features of a frozen network: every kind against a computation image by image and patch by patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import PretrainConfig
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.source import ResidentSplit
from fastselfie.pipelines.view import Batch, View
from fastselfie.pretext.task import PixelFormat
from fastselfie.training.features import KINDS, Extractor, estimate_statistics, gather_features, with_statistics
from fastselfie.training.online_knn import online_knn
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.world import World
from tests.small_networks import SETTINGS, assert_near, pretrain_config, randomise

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def frozen(config: PretrainConfig) -> Selfie:
    torch.manual_seed(0)
    network = Selfie(config)
    randomise(network)
    return network.eval()


def pixels(size: int, images: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(5).integers(0, 256, (images, size, size, 3), dtype=np.uint8)


def normalised(images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """(B, 3, H, H) by hand."""
    values = (images / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).float()


def extractor(network: Selfie, config: PretrainConfig, **more: Any) -> Extractor:
    format = PixelFormat(mean=torch.tensor(MEAN), std=torch.tensor(STD), dtype=torch.float32)
    return Extractor(network=network, pixels=format, patch=config.patch, **more)


def pipeline(images: np.ndarray[Any, np.dtype[np.uint8]], rows: Tensor | None = None) -> ResidentPipeline:
    split = ResidentSplit(images_SHW3=images, labels_S=np.arange(len(images)))
    return ResidentPipeline(split, view=View(size=images.shape[1]), seed=0, device=CPU, rows=rows)


@pytest.mark.parametrize("positions", ["both", "query"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_kind(setting: dict[str, Any], positions: Any) -> None:
    """Of a resident batch and of a grid view, as a decoder hands it out."""
    config = pretrain_config(**setting, positions=positions)
    network, other = frozen(config), frozen(config).trunk
    randomise(other, 7)
    H, P, G = config.image_size, config.patch, config.grid
    images = pixels(H, 2)
    extract = extractor(network, config, renormed=other)
    cells = torch.from_numpy(images).reshape(2, G, P, G, P, 3)
    keys = torch.arange(2)
    grid = Batch(view=View(size=H, grid=G), pixels=cells, epoch_B=keys, sample_B=keys, labels_B=keys)
    expected = [by_hand(network, other, config, image) for image in normalised(images)]
    for batch in (next(pipeline(images).in_order([(0, 2)])), grid):
        found = extract(batch)
        assert tuple(found) == extract.kinds == KINDS
        for kind, *values in zip(KINDS, *expected, strict=True):
            assert found[kind].dtype == torch.float32
            assert_near(found[kind], torch.stack(values), 1e-5, kind)


@torch.no_grad()
def by_hand(network: Selfie, other: ResNetV2, config: PretrainConfig, image: Tensor) -> list[Tensor]:
    """The four kinds, (D,) each, of an image (3, H, H)."""
    P, G = config.patch, config.grid
    cuts = [image[None, :, P * i : P * i + P, P * j : P * j + P] for i in range(G) for j in range(G)]
    h_ND = torch.cat([network.trunk(cut) for cut in cuts])
    tokens_ND = h_ND + network.positions() if config.positions == "both" else h_ND
    assert network.pooler is not None
    u_D = network.pooler(torch.cat([network.pooler.u0[None], tokens_ND])[None])[0]
    whole = [trunk.norm(trunk.forward_stages(image[None])[0]).relu() for trunk in (network.trunk, other)]
    return [*(maps[0].mean(dim=(1, 2)) for maps in whole), h_ND.mean(dim=0), u_D]


def test_a_summary_is_that_of_training_but_for_the_masked_patches() -> None:
    """u of `summarise` is u of `encode` where nothing is masked, in whatever order the patches come."""
    config = pretrain_config()
    network, images = frozen(config), pixels(32, 3)
    extract = extractor(network, config)
    (batch,) = pipeline(images).in_order([(0, 3)])
    network.visible = config.patches
    places_BN = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    format = extract.pixels
    patches = batch.patches(patch=8, mean=format.mean, std=format.std, dtype=format.dtype, places_BN=places_BN)
    with torch.no_grad():
        u_BD, h_BmD = network.encode(patches, places_BN)
    assert h_BmD.shape[1] == 0
    assert_near(extract(batch)["pooler"], u_BD, 1e-5)


def test_without_a_pooler_there_is_no_summary() -> None:
    config = pretrain_config(pooler="none")
    extract = extractor(frozen(config), config)
    (batch,) = pipeline(pixels(32, 2)).in_order([(0, 2)])
    assert tuple(extract(batch)) == extract.kinds == ("trunk-image", "trunk-patches")


@pytest.mark.parametrize("wanted", [("trunk-image", "pooler"), ("trunk-patches",), ("trunk-image-renormed",)])
def test_what_is_not_wanted_is_not_made(wanted: tuple[str, ...]) -> None:
    config = pretrain_config()
    network = frozen(config)
    more = {"renormed": frozen(config).trunk}
    (batch,) = pipeline(pixels(32, 2)).in_order([(0, 2)])
    found, everything = (
        extractor(network, config, **more, wanted=wanted)(batch),
        extractor(network, config, **more)(batch),
    )
    assert tuple(found) == wanted
    for kind, values in found.items():
        assert torch.equal(values, everything[kind])


@pytest.mark.parametrize(
    ("pooler", "shapes"), [("none", [(4, 32), (2, 32)]), ("mean", [(4, 32), (64, 8), (2, 32), (32, 8)])]
)
def test_neighbours_in_pretraining_see_no_patches_without_a_pooler(pooler: Any, shapes: list[tuple[int, int]]) -> None:
    """Of 4 images that may be neighbours and 2 others: what the trunk gets, maps and their side."""
    config = pretrain_config(pooler=pooler, knn_every=1, knn_images=4, device="cpu", out="run")
    network, split = frozen(config), ResidentSplit(images_SHW3=pixels(32, 9), labels_S=np.arange(9) % 2)
    format, met = extractor(network, config).pixels, list[tuple[int, int]]()
    network.trunk.stem.register_forward_pre_hook(lambda _, inputs: met.append((len(inputs[0]), inputs[0].shape[2])))
    looked = online_knn(
        config, World(device=CPU), network, split, format, pipeline(pixels(32, 2)), 2, Quarantine(11, 0.0)
    )  # fmt: skip
    assert set(looked.measure()) == {"knn_accuracy"} | ({"knn_accuracy_pooler"} if pooler == "mean" else set())
    assert met == shapes


@pytest.mark.parametrize("norm", ["stages.0.0.norm1", "stages.1.2.norm2", "norm"])
def test_statistics_are_means_of_the_batches_moments(norm: str) -> None:
    """NumPy's moments of what reaches a norm, for the first also of a convolution that torch computes by itself."""
    config = pretrain_config()
    trunk = frozen(config).trunk
    batches = [torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) + seed for seed in range(3)]
    reached: list[Tensor] = []
    copied = with_statistics(trunk, batches)  # before the hook, which would be copied too
    trunk.get_submodule(norm).register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0].detach().clone()))
    watched = _without_fusion(trunk)
    with torch.no_grad():
        for batch in batches:
            watched(batch)
    if norm == "stages.0.0.norm1":
        for maps, batch in zip(reached, batches, strict=True):
            torch.testing.assert_close(maps, F.conv2d(batch, trunk.stem.conv.weight, padding=1).detach())
    columns = [maps.double().numpy().transpose(1, 0, 2, 3).reshape(maps.shape[1], -1) for maps in reached]
    estimated = copied.get_submodule(norm)
    assert isinstance(estimated, nn.BatchNorm2d)
    assert estimated.running_mean is not None
    assert estimated.running_var is not None
    np.testing.assert_allclose(estimated.running_mean, np.mean([c.mean(axis=1) for c in columns], axis=0), atol=2e-4)
    variance = np.mean([c.var(axis=1, ddof=1) for c in columns], axis=0)
    np.testing.assert_allclose(estimated.running_var, variance, rtol=2e-3)
    assert (estimated.momentum, copied.training) == (0.1, False)


def _without_fusion(trunk: nn.Module) -> nn.Module:
    """In training mode, but so that every norm is called as a module: hooks see what reaches it."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = type("Norm", (nn.BatchNorm2d,), {})
    return trunk.train()


def test_estimating_touches_statistics_alone() -> None:
    trunk = frozen(pretrain_config()).trunk
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    copied = with_statistics(trunk, [torch.randn(4, 3, 32, 32)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    changed = {name for name, tensor in copied.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "running" in name}
    estimate_statistics(trunk, iter(()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


@pytest.mark.parametrize("chunk", [3, 4, 100])
def test_features_come_in_the_order_of_the_rows(chunk: int) -> None:
    config, images = pretrain_config(), pixels(32, 12)
    extract = extractor(frozen(config), config)
    rows, labels = torch.tensor([7, 2, 11, 0, 5]), torch.arange(12) * 10
    told: list[int] = []
    found = gather_features(
        World(device=CPU), pipeline(images, rows), rows, labels, chunk, extract, Quarantine(5, 0), told.append
    )
    assert found.labels_S.tolist() == [70, 20, 110, 0, 50]
    assert sum(told) == 5
    (whole,) = pipeline(images).in_order([(0, 12)])
    for kind, expected in extract(whole).items():
        assert_near(found.values[kind], expected[rows], 1e-5, kind)


def test_images_that_cannot_be_used_are_left_out() -> None:
    config, images = pretrain_config(), pixels(32, 6)
    extract, rows = extractor(frozen(config), config), torch.tensor([4, 1, 3])

    class _Missing(ResidentPipeline):
        def in_order(self, requests: Any) -> Iterator[Batch]:
            whole = ResidentPipeline.in_order(self, [(0, 1), (1, 1), (2, 3)])  # the second row, image 1, is not there
            yield from whole

    split = ResidentSplit(images_SHW3=images, labels_S=np.arange(6))
    missing = _Missing(split, view=View(size=32), seed=0, device=CPU, rows=rows)
    found = gather_features(World(device=CPU), missing, rows, torch.arange(6), 2, extract, Quarantine(3, 1))
    assert found.labels_S.tolist() == [4, 3]
    for kind, expected in extract(next(pipeline(images).in_order([(0, 6)]))).items():
        assert_near(found.values[kind], expected[[4, 3]], 1e-5, kind)
