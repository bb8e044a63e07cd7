"""Masks per batch: one for all images of a step, a function of seed and step, whoever holds which part of the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.synthetic import synthetic_source
from fastselfie.pipelines.view import Batch
from fastselfie.pretext.selfie import SelfieTask
from fastselfie.pretext.task import PixelFormat
from fastselfie.randomness import Purpose, permutations
from fastselfie.training.pretrain import divide, pretraining_job
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.trainer import Trainer
from fastselfie.training.world import World
from tests.command import SMALL, assert_equal_runs, succeed
from tests.photographs import jpeg, noise, pipeline, write
from tests.small_networks import pretrain_config

CPU, BATCH, IMAGES = torch.device("cpu"), 8, 20


def task_of(seed: int = 5, **settings: Any) -> SelfieTask:
    config = pretrain_config(batch_size=BATCH, seed=seed, **settings)
    return SelfieTask(config, cast(Selfie, None), PixelFormat.of(config, CPU))


def places_of(task: SelfieTask, batch: Batch) -> Tensor:
    """The places that the network is given: (B, 16)."""
    given: list[Tensor] = []

    def forward(patches: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        given.append(places_BN)
        return torch.tensor(0.0), torch.tensor(0)

    task.loss(forward, batch)
    return given[0]


def resident(task: SelfieTask) -> ResidentPipeline:
    source = synthetic_source(32, train=IMAGES, test=10)
    return ResidentPipeline(source.train, view=task.view, seed=5, device=CPU)


def files(task: SelfieTask, folder: Path) -> Pipeline:
    images = [(f"{i:02}.jpg", jpeg(noise(40, 40, i))) for i in range(IMAGES)]
    return pipeline(write(folder, images, labels=[0] * IMAGES), task.view, batch=BATCH)


@pytest.mark.parametrize("kind", ["resident", "files"])
def test_one_mask_a_step(kind: str, tmp_path: Path) -> None:
    """Six steps, over three epochs: the same in every row however the batch is cut, another one every step, and that of
    the key that it is said to have."""
    task = task_of(masks="batch")
    if kind == "files":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    stream = resident(task) if kind == "resident" else files(task, tmp_path)
    seen = []
    for step in range(6):
        start = step * BATCH
        parts = [(start, start + BATCH), (start, start + 4), (start + 4, start + 8), (start + 7, start + 8)]
        found = torch.cat([places_of(task, stream.batch(*part)) for part in parts])
        assert bool((found == found[0]).all())
        assert found[0].sort().values.tolist() == list(range(16))
        expected = permutations(5, Purpose.BATCH_MASK, torch.tensor([0]), torch.tensor([step]), 16)[0]
        assert torch.equal(found[0], expected)
        seen.append(tuple(found[0].tolist()))
    assert len(set(seen)) == 6


def test_another_seed_has_other_masks() -> None:
    task, other = task_of(masks="batch"), task_of(seed=6, masks="batch")
    batch = resident(task).batch(0, BATCH)
    assert not torch.equal(places_of(task, batch), places_of(other, batch))


def test_in_evaluations_each_image_has_its_own() -> None:
    """The same ones in both settings, so that figures compare."""
    by_batch, by_image = task_of(masks="batch"), task_of(masks="image")
    source = synthetic_source(32, train=IMAGES, test=10)
    plain = ResidentPipeline(source.train, view=by_batch.view.plain(), seed=5, device=CPU)
    (batch,) = plain.in_order([(0, 10)])
    assert batch.entry is None
    places_BN = places_of(by_batch, batch)
    assert torch.equal(places_BN, places_of(by_image, batch))
    assert len({tuple(row) for row in places_BN.tolist()}) == 10


def test_files_in_order_belong_to_no_step(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    task = task_of()
    images = [(f"{i:02}.jpg", jpeg(noise(40, 40, i))) for i in range(IMAGES)]
    plain = pipeline(write(tmp_path, images, labels=[0] * IMAGES), task.view.plain(), batch=BATCH)
    assert [batch.entry for batch in plain.in_order([(0, 8), (8, 16)])] == [None, None]


@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (2, 2), (4, 1)])
def test_any_number_of_ranks_and_micro_batches(shape: tuple[int, int], tmp_path: Path) -> None:
    """What the loop itself asks of its pipeline in two steps, rank by rank, has the step's mask throughout."""
    ranks, micro_batch = shape
    expected = [
        permutations(5, Purpose.BATCH_MASK, torch.tensor([0]), torch.tensor([step]), 16)[0].tolist()
        for step in range(2)
    ]
    config = pretrain_config(
        batch_size=BATCH, seed=5, masks="batch", micro_batch_size=micro_batch, data="synthetic", device="cpu",
        compile="off", precision="fp32", held_out=0,
    )  # fmt: skip
    parts = divide(config, synthetic_source(32, train=IMAGES, test=10))
    for rank in range(ranks):
        world = World(rank=rank, size=ranks, device=CPU)
        job = pretraining_job(config, world, parts)
        trainer = Trainer(job, world, RunFolder(tmp_path))
        assert trainer.groups == BATCH // ranks // micro_batch
        assert isinstance(job.task, SelfieTask)
        for step in range(2):
            for index in range(trainer.groups):
                places_BN = places_of(job.task, job.pipeline.batch(*trainer._entries(step, index)))
                assert places_BN.tolist() == [expected[step]] * micro_batch


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """To the bit, with two micro-batches: the same masks, and evaluations that count the same."""
    settings = ("--pooler", "max", "--masks", "batch")
    command = ("pretrain", *SMALL, *settings, "--steps", "4", "--log-every", "1", "--held-out", "20")
    one, two = tmp_path / "one", tmp_path / "two"
    succeed(*command, "--micro-batch-size", "8", "--out", one, cwd=tmp_path)
    succeed(*command, "--out", two, cwd=tmp_path, processes=2)
    assert_equal_runs(two, one)
