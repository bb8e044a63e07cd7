"""How a GPU would decode, and what is said of it; that it does is for `tests/test_photo_gpu.py`."""

from __future__ import annotations

import dataclasses
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from fastselfie.errors import UserError
from fastselfie.pipelines import gpu_decoding
from fastselfie.pipelines.gpu_decoding import Regions, choose_regions
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import View
from fastselfie.recipes import recipe
from fastselfie.training.data import loading, with_decoder
from fastselfie.training.world import World
from tests.photographs import CPU, flat_folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Packages and their versions, as if no other were there."""
    packages: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(gpu_decoding, "version", version)
    return packages


@pytest.mark.parametrize(
    ("package", "found", "asked", "regions", "why"),
    [
        ("nvidia-nvimgcodec-cu13", "0.9.0.20", "auto", False, "nvImageCodec 0.9.0.20 may crash on regions"),
        ("nvidia-nvimgcodec-cu12", "0.9.0.20", "auto", False, "nvImageCodec 0.9.0.20 may crash on regions"),
        ("nvidia-nvimgcodec-cu13", "0.9.0.20", "on", True, "asked for"),
        ("nvidia-nvimgcodec-cu13", "0.8.0.22", "auto", True, "less to decode"),
        ("nvidia-nvimgcodec-cu13", "0.9.1.3", "auto", True, "less to decode"),
        ("nvidia-nvimgcodec-cu13", "0.8.0.22", "off", False, "asked for"),
        ("torch", "2.13.0", "auto", True, "less to decode"),
    ],
)
def test_regions(
    package: str, found: str, asked: Regions, regions: bool, why: str, installed: dict[str, str]
) -> None:  # fmt: skip
    installed[package] = found
    assert choose_regions(asked) == (regions, why)
    if asked == "auto":
        assert Loading(threads=1, prefetch=1, batch=1).gpu.regions == regions
    config = dataclasses.replace(recipe("imagenet224").pretrain, region_decoding=asked, out=Path("run"))
    assert loading(config, World(device=CPU), 8).gpu.regions == regions


@pytest.mark.parametrize(("option", "value"), [("region_decoding", "off"), ("hardware_share", 0.5)])
def test_a_cpu_has_nothing_of_it(option: str, value: str | float, tmp_path: Path) -> None:
    flat_folder(tmp_path / "data", 4)
    changes: dict[str, object] = {option: value}
    config = dataclasses.replace(recipe("imagenet224").pretrain, out=tmp_path / "run", **changes)  # type: ignore[arg-type]
    flag = f"--{option.replace('_', '-')} {value}"
    with pytest.raises(UserError, match=f"^{flag}: is for DALI's decoder on a GPU, which is not used here"):
        with_decoder(config, open_source(str(tmp_path / "data"), 224), View.of(config, 7), World(device=CPU))


@pytest.mark.parametrize(
    ("found", "asked", "resolved", "said"),
    [
        ("0.9.0.20", "auto", "off", "of whole images (nvImageCodec 0.9.0.20 may crash on regions), takes up to"),
        ("0.8.0.22", "auto", "on", "of crops alone (less to decode), takes up to"),
        ("0.9.0.20", "on", "on", "of crops alone (asked for), takes up to"),
    ],
)
def test_a_run_on_a_gpu_tells_and_records_it(
    found: str, asked: Regions, resolved: str, said: str, installed: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    installed["nvidia-nvimgcodec-cu13"] = found
    flat_folder(tmp_path / "data", 4)
    source, world = open_source(str(tmp_path / "data"), 224), World(device=torch.device("cuda"))
    config = dataclasses.replace(recipe("imagenet224").pretrain, region_decoding=asked, out=tmp_path / "run")
    config, told = with_decoder(config, source, View.of(config, 7), world)
    assert (config.decoder, config.region_decoding) == ("dali", resolved)
    assert f"decoder dali (decodes on the device) {said}" in told
    plain = dataclasses.replace(config, crop="pad", decoder="auto", region_decoding="auto")
    config, told = with_decoder(plain, source, View.of(plain, 7), world)
    assert config.region_decoding == "auto"
    assert "decoder dali (decodes on the device), takes up to" in told
