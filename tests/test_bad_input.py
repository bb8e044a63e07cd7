"""Every mistake ends in one line and exit status 2, and leaves nothing on the disk that was not there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.command import SMALL, assert_refused, contents, fastselfie, in_process, succeed

QUICK = ("--steps", "4", "--log-every", "2", "--evaluate-every", "100", "--checkpoint-every", "2", "--held-out", "10")
PRETRAIN = ("pretrain", *SMALL, *QUICK)
FINETUNE = ("finetune", *SMALL)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A folder to run in, in which a refused command leaves everything as it was before it."""
    folder = tmp_path / "here"
    folder.mkdir()
    yield folder
    assert contents(folder) == {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that no refused command may change: finished runs, one without weights yet, one whose config.json is
    none, and one that holds something else."""
    folder = tmp_path_factory.mktemp("runs")
    succeed(*PRETRAIN, "--out", folder / "pretrained", cwd=folder)
    succeed(*FINETUNE, *QUICK[:-2], "--scratch", "--out", folder / "finetuned", cwd=folder)
    shutil.copytree(folder / "pretrained", folder / "unfinished")
    for name in ("encoder.safetensors", "result.json"):
        (folder / "unfinished" / name).unlink()
    for name, file, text in (("damaged", "config.json", "[]"), ("other", "notes", "hi")):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)
    before = contents(folder)
    yield folder
    assert contents(folder) == before


WORDS = [
    ("pretrain cifar01", "did you mean cifar10"),
    ("pretrain nothing-like-it", "there are cifar10, imagenet32, imagenet224, tiny"),
    ("pretrain", "name a recipe first, one of cifar10"),
    ("finetune --scratch", "name a recipe first"),
    ("pretrian tiny", "pretrian: there is no such command"),
    ("--out x", "--out: there is no such command"),
    ("pretrain tiny --epochs 5", "--epochs"),
    ("pretrain tiny stray", "stray"),
    ("pretrain tiny --steps", "--steps: takes 1 value"),
    ("pretrain tiny --steps --lr 1", "--steps"),
    ("pretrain tiny --steps abc", "--steps: must be a whole number, not abc; see"),
    ("pretrain tiny --lr 0,1", "--lr: must be a number, not 0,1; see"),
    ("pretrain tiny --mean 1 2 x", "--mean: must be numbers, not '1', '2', 'x'; see"),
    ("pretrain tiny --steps -5", "--steps -5: must be at least 1"),
    ("pretrain tiny --lr nan", "--lr nan: must be a finite number"),
    ("pretrain tiny --lr 0", "--lr 0.0: must be"),
    ("pretrain tiny --keep 1.0", "--keep 1.0: must be above 0 and below 1"),
    ("pretrain tiny --keep nan", "--keep nan"),
    ("pretrain tiny --keep 0.95", "at least 1 must be seen and 2 masked"),
    ("pretrain tiny --width 0.046875", "--width 0.046875: 48 features do not divide into 32 heads"),
    ("pretrain tiny --width 0.3", "--width 0.3: 64 * width must be a whole number"),
    ("pretrain tiny --heads 0", "--heads"),
    ("pretrain tiny --patch 0", "--patch 0"),
    ("pretrain tiny --seed -1", "--seed -1"),
    ("pretrain tiny --batch-size 0", "--batch-size 0"),
    ("pretrain tiny --micro-batch-size 48", "--micro-batch-size 48: must divide --batch-size 64"),
    ("pretrain tiny --keep-checkpoints 1", "--keep-checkpoints 1"),
    ("pretrain tiny --precision fp64", "--precision fp64: must be one of auto, fp32, bf16"),
    ("pretrain tiny --task jigsaw", "--task jigsaw: must be one of selfie"),
    ("pretrain tiny --mean 1 2", "--mean"),
    ("pretrain tiny --std 0 1 1", "--std"),
    ("finetune tiny --scratch --labels 0%", "--labels 0%: must be above 0%"),
    ("finetune tiny --scratch --labels 120%", "--labels 120%: must be above 0% and at most 100%"),
    ("finetune tiny --scratch --labels 8", "--labels 8: write a percentage such as 8%"),
    ("finetune tiny --scratch --labels nan%", "--labels nan%: write a percentage"),
    ("finetune tiny --scratch --encoder resnet18", "--encoder resnet18: must be one of resnet50"),
    ("finetune tiny --data synthetic:200", "--from RUN or --scratch"),
    ("pretrain imagenet224", "--data: must be given: without it there is CIFAR-10 alone, of 32x32 pixels"),
    ("report", "report: name the folder of a run"),
    ("doctor --recipe tiny", "--recipe tiny: has no effect without --data"),
    ("doctor --loader-threads 1", "--loader-threads 1: has no effect without --data"),
    ("render --out s3://bucket/scenes", "--out s3:/bucket/scenes: what is written lies on this machine"),
    ("demo --out s3://bucket/demo", "--out s3:/bucket/demo: what is written lies on this machine"),
    ("report run --out s3://bucket/a.html", "--out s3:/bucket/a.html: what is written lies on this machine"),
    ("export run --to s3://bucket/a.safetensors", "--to s3:/bucket/a.safetensors: what is written lies on this"),
]


@pytest.mark.parametrize(("words", "said"), WORDS, ids=[words for words, _ in WORDS])
def test_words(words: str, said: str, here: Path) -> None:
    assert said in assert_refused(fastselfie(*words.split(), cwd=here))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pretrain", *SMALL, "--batch-size", "201"), "--batch-size 201: there are only 200 images"),
        ((*FINETUNE, "--scratch", "--labels", "5%"), "--batch-size 16: there are only 10 images"),
        (("pretrain", *SMALL, "--data", "synthetic:9"), "--data: synthetic:9"),
        *[
            ((*command, *option.split()), f"{option}: has no effect, the images of synthetic lie in memory")
            for command, option in (
                (("pretrain", *SMALL), "--hardware-share 0.9"),
                (("pretrain", *SMALL), "--decoder turbo"),
                (("pretrain", *SMALL), "--loader-threads 3"),
                ((*FINETUNE, "--scratch"), "--prefetch 3"),
                ((*FINETUNE, "--scratch"), "--max-bad-share 0.5"),
                (("protocol", *SMALL), "--index here"),
                (("protocol", *SMALL, "--labels", "50%"), "--loader-threads 1"),
            )
        ],
        (("pretrain", *SMALL, "--kernels", "on"), "--kernels on: needs a CUDA device, or TRITON_INTERPRET=1"),
        (("pretrain", *SMALL, "--trunk", "fused"), "--trunk fused: needs a CUDA device, or TRITON_INTERPRET=1"),
    ],
)
def test_what_needs_the_data(words: tuple[str, ...], said: str, here: Path) -> None:
    assert said in assert_refused(in_process(*words, "--out", "run", cwd=here))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_where_there_is_none(here: Path) -> None:
    line = assert_refused(fastselfie("pretrain", "tiny", "--data", "synthetic:200", "--device", "cuda", cwd=here))
    assert "--device cuda: torch" in line


class _Foreign:
    """Unpickled freely, this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.marker}",)


def cifar(folder: Path) -> Path:
    """Ten images in CIFAR-10's layout."""
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    return folder


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "foreign", "incomplete", "other size", "notes"])
def test_data(kind: str, here: Path, tmp_path: Path) -> None:
    data, marker, size = tmp_path / "cifar-10-batches-py", tmp_path / "marker", ("32", "8")
    if kind == "empty":
        data.mkdir()
    elif kind == "notes":
        data.write_text("not images")
    elif kind != "missing":
        batch = cifar(data) / "data_batch_3"
        if kind == "truncated":
            batch.write_bytes(batch.read_bytes()[:2000])
        elif kind == "foreign":
            batch.write_bytes(pickle.dumps({"data": _Foreign(marker), "labels": [0]}, 2))
        elif kind == "incomplete":
            batch.unlink()
        else:
            size = ("64", "16")
    words = (*PRETRAIN, "--data", data, "--image-size", size[0], "--patch", size[1], "--out", "run")
    line = assert_refused(in_process(*words, cwd=here))
    assert line.startswith("fastselfie: --data: ")
    assert str(data) in line
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("pretrained", ("--lr", "0.05"), "holds a run with --lr 0.1, not 0.05"),
        ("pretrained", ("--data", "synthetic:201"), "images"),
        ("finetuned", (), "holds a finetune run"),
        ("other", (), "is not an empty folder and holds no run"),
        ("other/notes", (), "is not an empty folder and holds no run"),
        ("other/notes/run", (), "--out"),
        ("damaged", (), "config.json"),
        ("other/" + 300 * "a", (), "--out"),
    ],
)
def test_out(name: str, change: tuple[str, ...], said: str, runs: Path, here: Path) -> None:
    line = assert_refused(in_process(*PRETRAIN, *change, "--out", runs / name, cwd=here))
    assert said in line
    assert name in line


def test_finetuning_by_a_recipe_of_another_size(runs: Path, here: Path) -> None:
    words = ("finetune", "imagenet224", "--from", runs / "pretrained", "--data", "synthetic:200")
    line = assert_refused(in_process(*words, "--out", "run", cwd=here))
    assert "was pretrained by recipe tiny on 32x32 images, and imagenet224 has 224x224" in line
    assert not (here / "run").exists()


def test_out_of_another_recipe(runs: Path, here: Path) -> None:
    words = ["cifar10" if word == "tiny" else word for word in PRETRAIN]
    same = json.loads((runs / "pretrained" / "config.json").read_text())["settings"]
    shape = [word for name in ("mean", "std") for word in (f"--{name}", *map(str, same[name]))]
    line = assert_refused(in_process(*words, *shape, "--out", runs / "pretrained", cwd=here))
    assert "holds a run with recipe tiny, not cifar10" in line


def test_a_demo_is_not_put_beside_other_things(runs: Path, here: Path) -> None:
    for taken in ("other", "other/notes", "pretrained"):
        line = assert_refused(in_process("demo", "--out", runs / taken, cwd=here))
        assert "is not an empty folder and holds no demo; choose another" in line


def test_a_probe_takes_a_run_and_no_file(runs: Path, here: Path) -> None:
    file = runs / "pretrained" / "encoder.safetensors"
    line = assert_refused(in_process("probe", "tiny", "--from", file, cwd=here))
    assert f"--from {file}: is a file; name the folder of a pretraining run" in line


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("other/notes", (), "is a file"),
        ("other", (), "is not a run's folder"),
        ("damaged", (), "config.json"),
        ("unfinished", (), "is not finished"),
        ("finetuned", (), "is a finetune run"),
        ("pretrained", ("--scratch",), "--scratch: goes against --from"),
        ("pretrained", ("--width", "0.125"), "was pretrained with --width 0.0625"),
        ("pretrained", ("--heads", "8"), "was pretrained with --heads 4"),
    ],
)
def test_from(name: str, words: tuple[str, ...], said: str, runs: Path, here: Path) -> None:
    line = assert_refused(in_process(*FINETUNE, *words, "--from", runs / name, "--out", "run", cwd=here))
    assert said in line
    assert name in line or "--scratch" in words
