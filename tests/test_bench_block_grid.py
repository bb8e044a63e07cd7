"""`bench.block_grid` moves the grid of the colours and nothing else, and reports what the network says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from bench.block_grid import GRIDS, accuracy, compressed, look
from fastselfie.errors import UserError
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.synthetic import synthetic_source
from fastselfie.training import checkpoint
from tests.finished_runs import LARGE_STEM, finished
from tests.small_networks import pretrain_config


@pytest.mark.parametrize(("grid", "rows", "columns"), [
    ((0, 0), slice(0, 16), slice(16, 32)), ((8, 0), slice(8, 24), slice(0, 16)), ((0, 8), slice(16, 32), slice(8, 24)),
])  # fmt: skip
def test_the_grid_is_where_it_is_said_to_be(grid: tuple[int, int], rows: slice, columns: slice) -> None:
    """A block of 16 x 16 pixels on the grid comes out as it does from a file of its own, but for its outermost pixels,
    whose colours a decoder takes from its neighbours too. One beside the grid does not."""
    (image,) = synthetic_source(32, train=40, test=1).test.images_SHW3
    for moved in GRIDS.values():
        file, inside = io.BytesIO(), (slice(1, 15), slice(1, 15))
        Image.fromarray(image[rows, columns]).save(file, "JPEG", quality=75, subsampling="4:2:0")
        alone = np.asarray(Image.open(file))[inside]
        assert np.array_equal(compressed(image, *moved)[rows, columns][inside], alone) == (moved == grid)


def test_content_stays_in_its_place() -> None:
    scenes = synthetic_source(32, train=40, test=10).test.images_SHW3[:5].astype(int)
    for grid in GRIDS.values():
        seen = np.stack([compressed(scene.astype(np.uint8), *grid) for scene in scenes])
        assert np.abs(seen - scenes).mean() < 8 < np.abs(np.roll(seen, 1, axis=2) - scenes).mean()


def test_every_checkpoint_of_a_run(tmp_path: Path) -> None:
    network = finished(tmp_path / "run", "pretrain")
    assert isinstance(network, Selfie)
    images = synthetic_source(32, train=40, test=300).test.images_SHW3
    for step in (3, 7):
        saved = checkpoint.Checkpoint(step=step, weights=network.state_dict(), training={}, window={})
        checkpoint.save(tmp_path / "run" / "checkpoints", saved, keep=2)
    looks = look(tmp_path / "run", images)
    assert [(one["run"], one["step"]) for one in looks] == [("run", 3), ("run", 7)]
    for one in looks:
        assert one["as they are"] == accuracy(network, pretrain_config(), images)
        assert set(one["compressed, grid"]) == set(GRIDS)
    places = torch.rand(300, 16, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pretrain_config().mean, pretrain_config().std))
    right = 0
    with torch.no_grad():
        for image, order in zip(images, places, strict=True):
            pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
            rows, columns = order // 4, order % 4
            cut = [pixels[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r, c in zip(rows, columns, strict=True)]
            right += int(network(torch.stack(cut), order[None])[1])
    assert looks[0]["as they are"] == pytest.approx(right / 1200, abs=0.004)  # rounding may turn a close one


def test_runs_that_cannot_be_looked_at(tmp_path: Path) -> None:
    images = synthetic_source(32, train=40, test=2).test.images_SHW3
    for settings, said in ((LARGE_STEM, "sees 224 pixels, not 32"), ({}, "has no checkpoint")):
        run = tmp_path / said
        finished(run, "pretrain", **settings)
        with pytest.raises(UserError, match=f"--from .*: {said}"):
            look(run, images)
