"""The bench of the trunk's tiles: it calls each product as a step does, with the tile that it names."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from bench import trunk_tiles
from fastselfie.kernels.fused import tiles
from fastselfie.kernels.fused.tiles import Tile, tile_of
from fastselfie.models.resnet import ResNetV2


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage alone: interpreted kernels are slow."""
    monkeypatch.setattr(trunk_tiles, "trunk", lambda config: ResNetV2(config, stages=1))


def test_every_product_is_timed_once_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiles.json"
    trunk_tiles.main(["--recipe", "tiny", "--batch-size", "1", "--smoke", "--rounds", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    names = [row["call"] for row in rows]
    assert len(set(names)) == len(names)
    # A stage of width 16: conv1 of 16 and of 64 channels, the shortcut, conv2, and conv3 with each kind of residual
    # once, since both are of one shape; the gradients of three products' inputs and of four weights' shapes.
    products = [row["product"] for row in rows]
    assert {product: products.count(product) for product in products} == {"convolution": 5, "input": 3, "weight": 3}
    assert all(row["median_ms"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("product", ["convolution", "input", "weight"])
def test_a_pinned_tile_is_used_and_then_no_more(product: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "wide_products", lambda: wide)
    tile, others = (
        Tile(rows=32, columns=128, depth=16, warps=1, stages=2),
        {"convolution", "input", "weight"} - {product},
    )
    before = {name: tile_of(name, 256, torch.bfloat16) for name in (product, *others)}
    with trunk_tiles.pinned(product, tile):
        assert tile_of(product, 256, torch.bfloat16) == tile
        assert tile_of(product, 64, torch.bfloat16) == tile._replace(columns=64)
        assert all(tile_of(name, 256, torch.bfloat16) == before[name] for name in others)
    assert tile_of(product, 256, torch.bfloat16) == before[product] != tile


def test_a_candidate_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("out of shared memory\nand more")

    monkeypatch.setitem(trunk_tiles.OPERATORS, "weight", fail)
    call = trunk_tiles.Call(product="weight", name="weight 1", arguments=())
    settings = Namespace(smoke=True, rounds=1)
    row = trunk_tiles.measure(call, trunk_tiles.CANDIDATES[0], settings, torch.device("cpu"))
    assert row["error"] == "RuntimeError: out of shared memory"
    assert "median_ms" not in row
