"""What a finetuning run is judged by: test images, or labels held back, and the loss on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastselfie.evaluation.classify import ClassifyTask
from fastselfie.models.encoders import encoder
from fastselfie.models.weights import load_weights
from fastselfie.pipelines.source import ResidentSplit
from fastselfie.pipelines.sources import open_source
from fastselfie.pipelines.view import Batch
from fastselfie.pretext.task import PixelFormat
from tests.command import SMALL, in_process, succeed
from tests.small_networks import finetune_config

WORDS = ("finetune", *SMALL, "--scratch", "--labels", "50%", "--steps", "4", "--log-every", "2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    succeed(*WORDS, "--out", "test", cwd=folder)
    succeed(*WORDS, "--hold-back", "0.2", "--out", "validation", cwd=folder)
    return folder


def judged(run: Path, indices: list[int], split: str) -> tuple[float, float]:
    """Accuracy and loss of the run's network on those images, image by image in fp64."""
    result = json.loads((run / "config.json").read_text())["settings"]
    config = finetune_config(mean=tuple(result["mean"]), std=tuple(result["std"]), positions="both")
    source = open_source("synthetic:200", 32)
    images = source.train if split == "train" else source.test
    assert isinstance(images, ResidentSplit)
    network = encoder(config, 10)
    load_weights(network, safetensors.torch.load_file(run / "encoder.safetensors"))
    network.double().eval()
    right, losses = 0, []
    for index in indices:
        image = torch.from_numpy(images.images_SHW3[index]).double() / 255
        image = (image - torch.tensor(config.mean).double()) / torch.tensor(config.std).double()
        with torch.no_grad():
            scores = network(image.permute(2, 0, 1)[None])[0]
        label = int(images.labels_S[index])
        losses.append(float(-scores.log_softmax(0)[label]))
        right += int(scores.argmax()) == label
    return right / len(indices), sum(losses) / len(losses)


def test_accuracy_and_loss_on_the_test_images(runs: Path) -> None:
    result = json.loads((runs / "test" / "result.json").read_text())
    count = result["test_images"]
    accuracy, loss = judged(runs / "test", list(range(count)), "test")
    assert result["test_accuracy"] == pytest.approx(accuracy, abs=1.5 / count)
    assert result["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert "validation_accuracy" not in result


def test_labels_held_back_judge_and_the_test_images_do_not(runs: Path) -> None:
    run = runs / "validation"
    result = json.loads((run / "result.json").read_text())
    assert not [name for name in result if name.startswith("test")]
    trained = {int(line) for line in (run / "labelled.txt").read_text().split()}
    subset = {int(line) for line in (runs / "test" / "labelled.txt").read_text().split()}
    assert trained < subset
    kept = sorted(subset - trained)
    assert (len(trained), len(kept)) == (result["labelled_images"], result["validation_images"]) == (80, 20)
    accuracy, loss = judged(run, kept, "train")
    assert result["validation_accuracy"] == pytest.approx(accuracy, abs=1.5 / 20)
    assert result["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_loss_and_accuracy_of_a_batch() -> None:
    """In training and in evaluations: by hand, from scores in bf16; the loss is in fp32."""
    config = finetune_config()
    scores = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.bfloat16)

    class Known(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape == (3, 3, 32, 32)
            return scores

    network = Known()
    task = ClassifyTask(config, network, PixelFormat.of(config, torch.device("cpu")))
    key = torch.zeros(3, dtype=torch.int64)
    pixels, labels_B = torch.zeros(3, 32, 32, 3, dtype=torch.uint8), torch.tensor([2, 0, 1])
    batch = Batch(view=task.view, pixels=pixels, epoch_B=key, sample_B=key, labels_B=labels_B)
    found = task.loss(network, batch)
    e = math.exp
    losses = [math.log(2 + e(2)) - 2, math.log(e(1) + 2) - 1, math.log(e(3) + 2)]
    assert float(found.value) == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert float(found.metrics["accuracy"]) == pytest.approx(2 / 3)
    right, units, images = task.counts(batch).tolist()
    assert (right, images) == (2, 3)
    assert units / 2**24 == pytest.approx(sum(losses), rel=1e-6)


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_shares_that_make_no_sense(share: str, tmp_path: Path) -> None:
    ended = in_process(*WORDS, "--hold-back", share, "--out", "run", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--hold-back" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_something_must_be_left_to_train_on(tmp_path: Path) -> None:
    words = ("finetune", *SMALL, "--scratch", "--labels", "0.1%", "--hold-back", "0.1", "--out", "run")
    ended = in_process(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert "--hold-back 0.1: leaves none of 10 labels to train on" in ended.stderr
