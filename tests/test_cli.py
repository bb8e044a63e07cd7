"""The command line: help, what words mean, and what a run leaves behind."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import fastselfie
from fastselfie.arguments import parse_finetune, parse_pretrain
from fastselfie.doctor import examine
from fastselfie.errors import UserError
from fastselfie.pipelines.scene_files import write_scenes
from fastselfie.tool_arguments import DoctorArguments
from tests.command import MEASURED, PROGRAM, SMALL, succeed
from tests.command import fastselfie as run_command

SHARED = (
    "data", "out", "steps", "batch-size", "lr", "width", "seed", "device", "precision", "compile", "checkpoint-every",
    "log-every",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), ("pretrain", "finetune", "probe", "report", "render", "prepare", "doctor", "demo", "cifar10", "tiny")),
        (
            ("--help",),
            ("pretrain", "finetune", "probe", "report", "render", "prepare", "doctor", "demo", "cifar10", "tiny"),
        ),
        (("pretrain", "--help"), ("--keep", "--task", *(f"--{name}" for name in SHARED))),
        (("pretrain", "imagenet224", "--help"), ("--keep", "224")),
        (("finetune", "-h"), ("--from", "--scratch", "--encoder", "--labels", *(f"--{name}" for name in SHARED))),
        (("finetune", "tiny", "--help"), ("--from", "resnet36-attention")),
        (
            ("probe", "tiny", "--help"),
            ("--from", "--checkpoint", "--labels", "--neighbours", "--temperature", "--no-fresh"),
        ),
        (("report", "--help"), ("RUN...", "--out")),
        (("prepare", "--help"), ("SRC", "DST", "--size", "--side", "--quality", "--workers", "--shard-mb")),
        (("doctor", "--help"), ()),
        (("demo", "--help"), ("--out",)),
        (("--version",), (fastselfie.__version__,)),
    ],
)
def test_help(words: tuple[str, ...], named: tuple[str, ...], tmp_path: Path) -> None:
    ended = succeed(*words, cwd=tmp_path)
    assert ended.stderr == ""
    for name in named:
        assert name in ended.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["pretrain", "finetune", "protocol", "doctor"])
def test_help_is_in_paragraphs(command: str, tmp_path: Path) -> None:
    """A line of help ends where the next word would not fit, and not where a line of the source ends."""
    boxed = [line[1:-1] for line in succeed(command, "--help", cwd=tmp_path).stdout.splitlines() if line[:1] == "│"]
    width = len(boxed[0]) - 1
    for line, following in pairwise(boxed):
        if line.startswith("     ") and following.startswith("     "):
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > width, line


def test_help_names_what_data_may_be(tmp_path: Path) -> None:
    shown = " ".join(succeed("pretrain", "--help", cwd=tmp_path).stdout.replace("│", " ").split())
    for name in ("list of them", "packed shards", "WebDataset", "TFRecord", "Parquet", "cifar-10-batches-py"):
        assert name in shown[shown.index("--data ") : shown.index("--out ")]


def test_words_change_the_recipe() -> None:
    plain = parse_pretrain(["cifar10"])
    assert (plain.steps, plain.batch_size, plain.width, plain.keep, plain.out) == (120_000, 512, 1.0, 0.75, None)
    words = "cifar10 --width 0.25 --keep 0.5 --steps 7 --lr=1e-2 --out a/b --data x --pad-mode reflect --sync-bn"
    config = parse_pretrain([*words.split(), "--mean", "0.1", "0.2", "0.3", "--micro-batch-size", "128"])
    assert (config.recipe, config.width, config.keep, config.steps, config.lr) == ("cifar10", 0.25, 0.5, 7, 0.01)
    assert (config.out, config.data, config.pad_mode, config.sync_bn) == (Path("a/b"), "x", "reflect", True)
    assert (config.mean, config.std, config.micro_batch_size) == ((0.1, 0.2, 0.3), plain.std, 128)
    assert (config.visible, config.features) == (8, 256)
    tuned = parse_finetune(["cifar10", "--scratch", "--encoder", "resnet36-attention", "--labels", "8%"])
    assert (tuned.scratch, tuned.pretrained, tuned.encoder, tuned.labels) == (True, None, "resnet36-attention", "8%")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def pretrained(here: Path) -> Path:
    """A tiny run in the folder that it chooses itself."""
    words = ("--held-out", "20", "--steps", "12", "--log-every", "5", "--evaluate-every", "4", "--dropout", "0")
    assert str(Path("runs/tiny-pretrain")) in succeed("pretrain", *SMALL, *words, cwd=here).stderr
    assert [path.name for path in here.iterdir()] == ["runs"]
    return here / "runs" / "tiny-pretrain"


@pytest.fixture(scope="module")
def finetuned(pretrained: Path, here: Path) -> Path:
    """Finetuned from it, without repeating its shape, on half of the labels."""
    words = ("--from", "runs/tiny-pretrain", "--labels", "50%", "--steps", "6", "--log-every", "2", "--seed", "3")
    options = ("--data", "synthetic:200", "--batch-size", "16", "--device", "cpu", "--precision", "fp32")
    succeed("finetune", "tiny", *options, *words, cwd=here)
    found = [path for path in (here / "runs").iterdir() if path != pretrained]
    assert len(found) == 1
    assert "finetune" in found[0].name
    return found[0]


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_config_json(pretrained: Path) -> None:
    record = read(pretrained / "config.json")
    settings = record["settings"]
    resolved = {"recipe": "tiny", "width": 0.0625, "device": "cpu", "precision": "fp32", "compile": "off", "seed": 0}
    assert resolved.items() <= settings.items()
    not_resolved = [name for name, value in settings.items() if value == "auto"]
    assert not_resolved == ["decoder", "region_decoding"], "nothing is decoded here"
    assert record["command"] == "pretrain"
    assert record["made_by"]["fastselfie"] == fastselfie.__version__
    assert {"git_commit", "torch", "python", "numpy"} <= record["made_by"].keys()


def test_pretraining_metrics(pretrained: Path) -> None:
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [5, 10, 12]
    for line in logged:
        assert {"step", "loss", "accuracy", "lr", *MEASURED} <= line.keys()
        assert 0 <= line["data_wait"] <= 1
        assert 0 <= line["accuracy"] <= 1
        assert 0 < line["peak_gib"] < 64
    judged = [line for line in lines if "context_gap" in line]
    assert [line["step"] for line in judged] == [4, 8, 12]
    for line in judged:
        assert line["context_gap"] == line["held_out_accuracy"] - line["accuracy_shuffled"]
        assert line["context_gap_low"] <= line["context_gap"] <= line["context_gap_high"]


def test_tensorboard_shows_the_same(pretrained: Path) -> None:
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(pretrained))
    events.Reload()
    for name in ("loss", "accuracy", "lr", "context_gap", "images_per_second"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        logged = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert shown == logged


def test_pretraining_result(pretrained: Path) -> None:
    result = read(pretrained / "result.json")
    assert {"task": "selfie", "seed": 0, "step": 12, "data": "synthetic"}.items() <= result.items()
    assert result["context_gap_low"] <= result["context_gap"] <= result["context_gap_high"]


def test_finetuning_inherits_the_shape(finetuned: Path, pretrained: Path) -> None:
    settings, theirs = read(finetuned / "config.json")["settings"], read(pretrained / "config.json")["settings"]
    for name in ("width", "heads", "patch", "image_size", "positions"):
        assert settings[name] == theirs[name]
    assert settings["dropout"] == 0.1, "a regulariser, not a shape"


@pytest.mark.parametrize(("flag", "other"), [("--width", "0.125"), ("--heads", "8"), ("--positions", "query")])
def test_finetuning_refuses_another_shape(flag: str, other: str, pretrained: Path, tmp_path: Path) -> None:
    attention = ("--encoder", "resnet36-attention")
    words = ("finetune", "tiny", "--data", "synthetic:200", "--from", pretrained, *attention, flag, other)
    ended = run_command(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert f"{flag} {other}: {pretrained} was pretrained with {flag}" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_inheritance_in_words(pretrained: Path, tmp_path: Path) -> None:
    for words in (["--from", str(pretrained)], [f"--from={pretrained}"]):
        assert parse_finetune(["tiny", *words]).width == 0.0625
    with pytest.raises(UserError, match="there is no such folder"):
        parse_finetune(["tiny", "--from", str(tmp_path / "nowhere")])
    last = parse_finetune(["tiny", "--from", str(tmp_path / "nowhere"), "--from", str(pretrained)])
    assert (last.pretrained, last.width) == (pretrained, 0.0625)


def test_the_doctor_shows_a_path_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    write_scenes(tmp_path / "[red]cap", size=32, train=10, test=10, seed=0, progress=lambda done: None)
    examine(DoctorArguments(recipe="tiny", data=str(tmp_path / "[red]cap"), batch_size=2))
    found = capsys.readouterr().out
    assert f"loading {tmp_path}/[red]cap " in found
    assert "'fastselfie[turbo]'" in found


def test_a_name_of_any_bytes_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in most locales, but for C
    words = ("render", "--out", os.fsdecode(b"caf\xe9"), "--size", "8", "--train", "10", "--test", "10")
    ended = run_command(*words, cwd=tmp_path, program=PROGRAM)
    assert (ended.returncode, ended.stdout) == (0, "caf\\udce9: 10 scenes in train/, 10 in val/\n")


def test_finetuning_result(finetuned: Path) -> None:
    result = read(finetuned / "result.json")
    expected = {"labels": "50%", "labelled_images": 100, "seed": 3, "encoder": "resnet50", "pretrained": True}
    assert expected.items() <= result.items()
    assert 0 <= result["test_accuracy"] <= 1
    rows = [int(line) for line in (finetuned / "labelled.txt").read_text().splitlines()]
    assert len(rows) == 100
    assert rows == sorted(set(rows))
    assert 0 <= rows[0] <= rows[-1] < 200
