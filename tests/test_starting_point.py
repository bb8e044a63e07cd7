"""Runs that start from a ResNet-50v2 in a file: what each network takes of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastselfie.arguments import parse_finetune, parse_pretrain
from fastselfie.errors import UserError
from fastselfie.evaluation.export import export
from fastselfie.evaluation.finetune import finetune
from fastselfie.models.encoders import AttentionClassifier, ResNet50Classifier
from fastselfie.models.selfie import Selfie
from fastselfie.training.pretrain import pretrain
from fastselfie.training.starting_point import StartingPoint, read_starting_point
from tests.command import assert_refused, contents, in_process
from tests.finished_runs import CLASSES, LARGE_STEM, finished, resnet50
from tests.small_networks import finetune_config, pretrain_config

Tensors = dict[str, Tensor]


def tensors_of_timm(kernel: int = 3, classes: int | None = CLASSES) -> Tensors:
    """Weights under timm's names, every one of its own values."""
    generator = torch.Generator().manual_seed(1)
    shapes = resnet50(1 / 16, kernel, classes)
    return {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(5) for name, shape in shapes.items()
    }


def starting_point(path: Path, tensors: Tensors, **settings: Any) -> StartingPoint:
    safetensors.torch.save_file(tensors, path / "timm.safetensors")
    return read_starting_point(finetune_config(**settings), path / "timm.safetensors")


@pytest.mark.parametrize(("settings", "kernel"), [({}, 3), (LARGE_STEM, 7)], ids=["3x3 stem", "7x7 stem"])
def test_resnet50_takes_all(settings: dict[str, Any], kernel: int, tmp_path: Path) -> None:
    tensors = tensors_of_timm(kernel)
    start = starting_point(tmp_path, tensors, **settings)
    assert (start.classes, start.tells_pixels) == (CLASSES, False)
    network = ResNet50Classifier(finetune_config(**settings), CLASSES)
    start.load_into(network)
    state = network.state_dict()
    for theirs, ours in (
        ("stem.conv.weight", "trunk.stem.conv.weight"),
        ("stages.3.blocks.0.downsample.conv.weight", "trunk.stages.3.0.shortcut.weight"),
        ("stages.3.blocks.2.norm3.running_mean", "trunk.stages.3.2.norm3.running_mean"),
        ("norm.running_var", "trunk.norm.running_var"),
        ("head.fc.bias", "classifier.bias"),
    ):
        assert torch.equal(state[ours], tensors[theirs])
    assert torch.equal(state["classifier.weight"], tensors["head.fc.weight"][:, :, 0, 0])
    # Each of the other tensors has come from somewhere too: no two of the file are alike.
    assert len(state) == sum(not name.endswith("num_batches_tracked") for name in tensors)
    sums = sorted(value.double().sum().item() for value in state.values())
    assert sums == sorted(tensors[name].double().sum().item() for name in tensors if tensors[name].dim())


@pytest.mark.parametrize("classes", [None, CLASSES + 1], ids=["no classifier", "other classes"])
def test_a_classifier_of_other_classes_is_left_out(classes: int | None, tmp_path: Path) -> None:
    tensors = tensors_of_timm(classes=classes)
    network = ResNet50Classifier(finetune_config(), CLASSES)
    fresh = network.classifier.weight.clone()
    starting_point(tmp_path, tensors).load_into(network)
    assert torch.equal(network.classifier.weight, fresh)
    assert torch.equal(network.state_dict()["trunk.norm.bias"], tensors["norm.bias"])


@pytest.mark.parametrize("kind", ["resnet36-attention", "selfie"])
def test_three_stages_take_the_norm_behind_them(kind: str, tmp_path: Path) -> None:
    tensors = tensors_of_timm()
    config = finetune_config(encoder="resnet36-attention")
    network = Selfie(pretrain_config()) if kind == "selfie" else AttentionClassifier(config, CLASSES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    starting_point(tmp_path, tensors).load_into(network)
    after = network.state_dict()
    for part in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(after[f"trunk.norm.{part}"], tensors[f"stages.3.blocks.0.norm1.{part}"])
    assert torch.equal(after["trunk.stages.2.5.conv3.weight"], tensors["stages.2.blocks.5.conv3.weight"])
    for name, value in after.items():
        assert torch.equal(value, before[name]) is not name.startswith("trunk.")


def test_half_precision_becomes_fp32(tmp_path: Path) -> None:
    tensors = {name: value.bfloat16() if value.dim() else value for name, value in tensors_of_timm().items()}
    start = starting_point(tmp_path, tensors)
    assert start.weights["trunk.norm.bias"].dtype == torch.float32
    assert torch.equal(start.weights["trunk.norm.bias"], tensors["norm.bias"].float())


def changed(name: str, value: Tensor | None) -> Callable[[Tensors], Tensors]:
    """The same with another tensor of that name, or without it."""
    return lambda tensors: {key: old for key, old in (tensors | {name: value}).items() if old is not None}


WEIGHT = "stages.1.blocks.2.conv2.weight"
DAMAGES: list[tuple[str, Callable[[Tensors], Tensors], tuple[str, ...], str]] = [
    ("missing", changed(WEIGHT, None), (), f"has no {WEIGHT}, which timm's resnetv2_50 has"),
    ("group norm", changed("norm.running_mean", None), (), "has no norm.running_mean"),
    ("unexpected", changed("stem.norm1.weight", torch.ones(4)), (), "has stem.norm1.weight, which timm's"),
    ("counter", changed("x.num_batches_tracked", torch.tensor(1)), (), "has x.num_batches_tracked, which"),
    ("half a head", changed("head.fc.bias", None), (), "has no head.fc.bias"),
    ("shape", changed(WEIGHT, torch.ones(8, 8, 1, 1)), (), f"{WEIGHT} is 8x8x1x1, and --width 0.0625 --patch 8 need"),
    ("width", dict, ("--width", "0.125"), "is 4x3x3x3, and --width 0.125 --patch 8 need 8x3x3x3; leave --width out"),
    ("stem", dict, ("--patch", "32", "--image-size", "96"), "a 3x3 stem goes with patches of less than 32 pixels"),
    ("not finite", changed("norm.bias", torch.full((128,), torch.nan)), (), "norm.bias holds what is no finite number"),
    ("integers", changed("norm.bias", torch.ones(128, dtype=torch.int32)), (), "norm.bias holds what is no finite"),
    ("our own", changed("trunk.norm.bias", torch.ones(128)), (), "trunk.norm.bias, a name of FastSelfie's own"),
]  # fmt: skip


@pytest.mark.parametrize("command", [("pretrain",), ("finetune",)], ids=["pretrain", "finetune"])
@pytest.mark.parametrize(("damage", "words", "said"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_weights_that_do_not_fit(
    command: tuple[str, ...], damage: Callable[[Tensors], Tensors], words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    safetensors.torch.save_file(damage(tensors_of_timm()), tmp_path / "x.safetensors")
    before = contents(tmp_path)
    options = ("tiny", "--data", "synthetic:200", "--heads", "4", "--batch-size", "16", "--from", "x.safetensors")
    line = assert_refused(in_process(*command, *options, *words, "--out", "run", cwd=tmp_path))
    assert "--from x.safetensors: " in line
    assert said in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.safetensors", None, "there is no such file"),
        ("x.safetensors", b"", "is no whole .safetensors file"),
        ("x.safetensors", b"\xff" * 100, "is no whole .safetensors file"),
        ("x.safetensors", (4).to_bytes(8, "little") + b"[[]]", "is no whole .safetensors file"),
        ("x.pth", b"pickled", "only .safetensors files are read"),
        ("x.bin", None, "safetensors.torch.save_file(model.state_dict(), 'x.safetensors')"),
    ],
)
def test_files_that_are_refused(command: str, name: str, data: bytes | None, said: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    before = contents(tmp_path)
    assert said in assert_refused(in_process(command, "tiny", "--data", "synthetic:200", "--from", name, cwd=tmp_path))
    assert contents(tmp_path) == before


def test_a_torn_file(tmp_path: Path) -> None:
    whole = safetensors.torch.save(tensors_of_timm())
    (tmp_path / "x.safetensors").write_bytes(whole[:-10])
    words = ("tiny", "--data", "synthetic:200", "--heads", "4", "--from", "x.safetensors", "--out", "run")
    assert "x.safetensors: cannot be read" in assert_refused(in_process("pretrain", *words, cwd=tmp_path))


def test_a_folder_is_no_start_for_pretraining(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    line = assert_refused(in_process("pretrain", "tiny", "--from", "run", cwd=tmp_path))
    assert "fastselfie export run --to FILE" in line


def test_the_file_s_width_and_pixels_are_defaults(tmp_path: Path) -> None:
    finished(tmp_path / "run", "pretrain", width=0.125, heads=8, mean=[0.5, 0.25, 0.125], std=[1.0, 0.5, 0.25])
    ours, timm = tmp_path / "ours.safetensors", tmp_path / "timm.safetensors"
    export(tmp_path / "run", ours)
    safetensors.torch.save_file(safetensors.torch.load_file(ours), timm)
    plain = parse_pretrain(["tiny"])
    for parse in (parse_pretrain, parse_finetune):
        config = parse(["tiny", "--from", str(ours)])
        assert (config.width, config.heads, config.pretrained) == (0.125, 8, ours)
        assert (config.mean, config.std) == ((0.5, 0.25, 0.125), (1.0, 0.5, 0.25))
        config = parse(["tiny", f"--from={timm}", "--std", "0.5", "0.5", "0.5"])
        assert (config.width, config.heads, config.mean, config.std) == (0.125, 32, plain.mean, (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", "[0.5, 0.5]"), ("std", "nothing"), ("heads", "many"), ("mean", "[" * 100_000),
        ("std", f"[0, 0, 1{400 * '0'}]"),
    ],
)  # fmt: skip
def test_damaged_metadata(name: str, value: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors_of_timm(), tmp_path / "x.safetensors", {name: value})
    line = assert_refused(in_process("pretrain", "tiny", "--from", "x.safetensors", cwd=tmp_path))
    assert "x.safetensors: its metadata is damaged" in line


def test_a_shape_that_is_none(tmp_path: Path) -> None:
    header = json.dumps({"stem.conv.weight": {"dtype": "F32", "shape": ["wide"], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    line = assert_refused(in_process("pretrain", "tiny", "--from", "x.safetensors", cwd=tmp_path))
    assert "x.safetensors: is no whole .safetensors file" in line


def run(command: str, *words: str | Path) -> Path:
    """Two steps in this process."""
    quick = ("--steps", "2", "--log-every", "1", "--data", "synthetic:200", "--batch-size", "16", "--device", "cpu")
    options = [*map(str, words), *quick, "--precision", "fp32"]
    if command == "pretrain":
        return pretrain(parse_pretrain(["tiny", *options, "--held-out", "0"]))
    return finetune(parse_finetune(["tiny", *options, "--evaluate-every", "2"]))


def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pretrained, exported, finetuned from the run and from the file: the same weights to the last bit. Then on with
    pretraining from what was finetuned; another file in its place is noticed."""
    first_file, second_file = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    first = run("pretrain", "--width", "0.0625", "--heads", "4", "--out", tmp_path / "first")
    export(first, first_file)
    by_run = run("finetune", "--from", first, "--out", tmp_path / "by-run")
    capsys.readouterr()
    by_file = run("finetune", "--from", first_file, "--out", tmp_path / "by-file")
    assert f"from {first_file}: all weights but a classifier, which is fresh\n" in capsys.readouterr().err
    assert (by_run / "encoder.safetensors").read_bytes() == (by_file / "encoder.safetensors").read_bytes()
    export(by_file, second_file)
    words = ("pretrain", "--from", second_file, "--lr", "1e-12", "--out", tmp_path / "third")
    third = run(*words)
    assert f"from {second_file}: stem, stages 1 to 3 and the norm behind them; all else" in capsys.readouterr().err
    settings = json.loads((third / "config.json").read_text())["settings"]
    assert (settings["pretrained"], settings["width"], settings["heads"]) == (str(second_file), 0.0625, 4)
    ended, file = (safetensors.torch.load_file(path) for path in (third / "encoder.safetensors", second_file))
    torch.testing.assert_close(ended["trunk.stem.conv.weight"], file["stem.conv.weight"], rtol=1e-5, atol=1e-8)
    first_file.replace(second_file)
    with pytest.raises(UserError, match="third: was made with other weights"):
        run(*words)
