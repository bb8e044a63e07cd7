"""The pictures of where patches are put: what is recorded, when, and what a resumed run keeps of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.baselines.plain_selfie import PlainSelfie, load_from
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.synthetic import synthetic_source
from fastselfie.pipelines.view import Batch, View
from fastselfie.pretext.selfie import SelfieTask
from fastselfie.pretext.task import PixelFormat
from fastselfie.training.placements import PlacementRecorder, moments
from tests.small_networks import SETTINGS, pretrain_config, question, randomise

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(320, [0, 10, 40, 80, 160, 320]), (120_000, [0, 3750, 15_000, 30_000, 60_000, 120_000]), (1, [0, 1])],
)
def test_moments(steps: int, expected: list[int]) -> None:
    assert moments(steps) == expected


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_each_place_gets_its_best_patch(settings: dict[str, int]) -> None:
    """Against scores that a loop makes from the plain network's features, place by place and patch by patch."""
    config = pretrain_config(**settings)
    torch.manual_seed(0)
    network = Selfie(config).double().eval()
    randomise(network)
    plain = PlainSelfie(config.width, config.grid, config.patch, config.visible, config.heads, config.dropout).double()
    load_from(plain, network.state_dict())
    plain.eval()
    patches, places_BN = question(config, images=3)
    with torch.no_grad():
        put_Bm = network.place(patches, places_BN)
        u_BD, h_BmD = plain.encode(patches, places_BN)
        e_ND = network.positions().detach()
    for image, places_m in enumerate(places_BN[:, config.visible :].tolist()):
        for j, place in enumerate(places_m):
            scores = [float((u_BD[image] + e_ND[place]) @ h_BmD[image, k]) for k in range(len(places_m))]
            assert put_Bm[image, j] == int(np.argmax(scores))


def test_the_task_tells_places_by_their_patches() -> None:
    """``chosen`` is the place that the patch comes from: the right one exactly where the network is right."""
    config = pretrain_config()
    torch.manual_seed(0)
    network = Selfie(config).eval()
    task = SelfieTask(config, network, PixelFormat.of(config, CPU))
    source = synthetic_source(32, train=40, test=10)
    pipeline = ResidentPipeline(source.train, view=task.view.plain(), seed=0, device=CPU)
    batch = next(pipeline.in_order([(0, 40)]))
    places_Bm, chosen_Bm = task.placements(batch)
    right, _, questions, *_ = task.context_counts(batch).tolist()
    assert places_Bm.shape == chosen_Bm.shape == (40, 4)
    assert questions == 160
    assert int((places_Bm == chosen_Bm).sum()) == right
    assert 0 < right < questions
    for places, chosen in zip(places_Bm.tolist(), chosen_Bm.tolist(), strict=True):
        assert len(set(places)) == 4
        assert set(chosen) <= set(places)


def recorder(steps: int) -> tuple[PlacementRecorder, Batch]:
    """One whose network always puts the first masked patch everywhere, and the pictures that it looks at."""
    pipeline = ResidentPipeline(synthetic_source(32, train=40, test=10).test, view=View(size=32), seed=0, device=CPU)
    batch = next(pipeline.in_order([(2, 5)]))
    places_Bm = torch.tensor([[3, 7], [1, 0], [15, 2]])

    def place(asked: Batch) -> tuple[Tensor, Tensor]:
        assert asked is batch
        return places_Bm, places_Bm[:, :1].expand(-1, 2)

    return PlacementRecorder(steps, lambda: batch, place), batch


def read(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "placements" / "moments.jsonl").read_text().splitlines()]


def test_pictures_and_moments_are_written(tmp_path: Path) -> None:
    watch, _ = recorder(steps=64)
    for done in range(65):
        if watch.due(done):
            watch.record(tmp_path, done)
    lines = read(tmp_path)
    assert [line["step"] for line in lines] == [0, 2, 8, 16, 32, 64]
    assert all(line["places"] == [[3, 7], [1, 0], [15, 2]] for line in lines)
    assert all(line["chosen"] == [[3, 3], [1, 1], [15, 15]] for line in lines)
    scenes = synthetic_source(32, train=40, test=10).test.images_SHW3[2:5]
    for index, scene in enumerate(scenes):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"placements/picture-{index}.png")), scene)


def test_a_resumed_run_forgets_what_comes_again(tmp_path: Path) -> None:
    watch, _ = recorder(steps=64)
    for done in (0, 2, 8, 16):
        watch.record(tmp_path, done)
    with (tmp_path / "placements" / "moments.jsonl").open("a") as file:
        file.write('{"step": 1' + 400 * "0" + '}\n{"step": 32, "pla')  # no number of steps; killed while it wrote
    watch.cut_back(tmp_path, 10)
    assert [line["step"] for line in read(tmp_path)] == [0, 2, 8]
    watch.record(tmp_path, 16)
    assert [line["step"] for line in read(tmp_path)] == [0, 2, 8, 16]
    watch.record(tmp_path, 0)  # from the start again: no checkpoint was left
    assert [line["step"] for line in read(tmp_path)] == [0]
