"""Runs on a folder of photographs: what they log, two processes, finetuning, images set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastselfie.config import PretrainConfig
from fastselfie.pipelines.image_folder import read_image_folder
from fastselfie.training.pretrain import divide, pretraining_job
from fastselfie.training.world import World
from tests.command import assert_equal_runs, metrics, succeed
from tests.photographs import CPU, flat_folder, jpeg, picture, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

NETWORK = ("--width", "0.0625", "--heads", "4", "--device", "cpu", "--precision", "fp32")
STEPS = 30
PRETRAIN = (
    *("pretrain", "tiny", *NETWORK, "--crop", "resized", "--batch-size", "8", "--steps", str(STEPS)),
    *("--log-every", "7", "--checkpoint-every", "10", "--evaluate-every", "9"),
)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """59 images without labels."""
    return flat_folder(tmp_path_factory.mktemp("data") / "flat", 59)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twenty images to train on and ten to test on."""
    folder = tmp_path_factory.mktemp("data") / "classes"
    for part, count in (("train", 20), ("val", 10)):
        for name in ("dark", "light"):
            images = [picture(48, 50, index) // 2 + 120 * (name == "light") for index in range(count)]
            write(folder / part / name, [(f"{index}.jpg", jpeg(image)) for index, image in enumerate(images)])
    return folder


@pytest.fixture(scope="module")
def reference(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with two micro-batches, which nothing disturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    succeed(*PRETRAIN, "--micro-batch-size", "4", "--data", flat, "--out", run, cwd=run.parent)
    return run


def test_the_reference_run_logs_what_it_should(reference: Path) -> None:
    lines = metrics(reference)
    assert [line["step"] for line in lines] == [7, 9, 14, 18, 21, 27, 28, 30]
    assert ["context_gap" in line for line in lines] == [line["step"] in (9, 18, 27, 30) for line in lines]
    result = json.loads((reference / "result.json").read_text())
    assert (result["images"], result["held_out_images"]) == (54, 5)


def test_two_processes(flat: Path, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(*PRETRAIN, "--data", flat, "--out", run, cwd=tmp_path, processes=2)
    assert_equal_runs(run, reference)


@pytest.mark.parametrize("encoder", ["resnet50", "resnet36-attention"])
def test_finetuning(encoder: str, reference: Path, classes: Path, tmp_path: Path) -> None:
    command = (
        *("finetune", "tiny", *NETWORK, "--crop", "resized", "--batch-size", "8", "--steps", "8", "--log-every", "3"),
        *("--from", reference, "--encoder", encoder, "--labels", "50%", "--data", classes),
    )
    succeed(*command, "--out", "run", cwd=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["labelled_images"], result["test_images"]) == (20, 20)
    assert 0 <= result["test_accuracy"] <= 1
    assert [line["step"] for line in metrics(tmp_path / "run")] == [3, 6, 8]
    rows = list(map(int, (tmp_path / "run" / "labelled.txt").read_text().split()))
    assert sum(row < 20 for row in rows) == 10  # files are sorted, so the first twenty are of the first class


@pytest.mark.parametrize(("held_out", "set_aside"), [(4, 4), (100, 5), (0, 0)])
def test_images_set_aside_are_not_trained_on(held_out: int, set_aside: int, flat: Path) -> None:
    """Over five epochs as the pipelines show them; what is left is trained on as often as the rest."""
    config = PretrainConfig(
        recipe="test", width=1 / 16, heads=4, crop="resized", batch_size=10, held_out=held_out, device="cpu",
        precision="fp32", compile="off", seed=5, steps=1,
    )  # fmt: skip
    parts = divide(config, read_image_folder(flat))
    trained, aside = set(parts.rows.tolist()), set(parts.held_out_rows.tolist())
    assert (len(trained), len(aside)) == (59 - set_aside, set_aside)
    assert trained | aside == set(range(59))
    pipeline = pretraining_job(config, World(rank=0, size=1, device=CPU), parts).pipeline
    entries = 5 * len(trained)
    seen = torch.cat([pipeline.batch(start, start + 10).sample_B for start in range(0, entries, 10)])[:entries]
    assert torch.equal(seen.bincount(minlength=59), torch.tensor([5 * (row in trained) for row in range(59)]))


def test_the_seed_decides_what_is_set_aside(flat: Path) -> None:
    drawn = []
    for seed in (5, 5, 6):
        config = PretrainConfig(recipe="test", held_out=6, seed=seed)
        drawn.append(divide(config, read_image_folder(flat)).held_out_rows.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_of_a_folder_with_val_nothing_is_set_aside(classes: Path) -> None:
    source = read_image_folder(classes)
    parts = divide(PretrainConfig(recipe="test", held_out=6), source)
    assert parts.held_out is source.test
    assert len(set(parts.held_out_rows.tolist())) == 6
    assert parts.rows.tolist() == list(range(40))
