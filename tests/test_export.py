"""`fastselfie export`: names and shapes are the network's definition's, values the run's, outputs plain PyTorch's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fastselfie
from examples.resnetv2 import ResNet50V2, load
from fastselfie.evaluation.export import export
from fastselfie.models.encoders import ResNet50Classifier
from fastselfie.models.selfie import Selfie
from fastselfie.randomness import Purpose, scalar_key
from tests.command import assert_refused, contents, in_process
from tests.finished_runs import CLASSES, LARGE_STEM, SMALL, finished, read, resnet50
from tests.small_networks import assert_near, finetune_config

STEMS = pytest.mark.parametrize(("shape", "kernel"), [({}, 3), (LARGE_STEM, 7)], ids=["3x3 stem", "7x7 stem"])


def test_the_list_of_names_is_the_network_of_the_literature() -> None:
    """25.55 million parameters with 1,000 classes, as timm's table of models has it for resnetv2_50."""
    shapes = resnet50(classes=1000)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    trained = [torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith(buffers)]
    assert sum(trained) == 25_549_352
    assert len(shapes) == 300


@STEMS
def test_a_pretraining_run(shape: dict[str, Any], kernel: int, tmp_path: Path) -> None:
    """Stem and stages 1 to 3 bit for bit, P's last norm as stage 4's first, and the rest as finetuning with the same
    seed would begin."""
    selfie = finished(tmp_path / "run", "pretrain", seed=3, **shape)
    generator = torch.get_rng_state()
    told = export(tmp_path / "run", tmp_path / "out.safetensors")
    assert torch.equal(torch.get_rng_state(), generator), "the caller's own random numbers go on as they would have"
    tensors, metadata = read(tmp_path / "out.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == resnet50(1 / 16, kernel)
    assert isinstance(selfie, Selfie)
    ours = selfie.state_dict()
    assert torch.equal(tensors["stem.conv.weight"], ours["trunk.stem.conv.weight"])
    assert torch.equal(tensors["stages.1.blocks.0.downsample.conv.weight"], ours["trunk.stages.1.0.shortcut.weight"])
    assert torch.equal(tensors["stages.2.blocks.5.norm3.running_var"], ours["trunk.stages.2.5.norm3.running_var"])
    for part in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(tensors[f"stages.3.blocks.0.norm1.{part}"], ours[f"trunk.norm.{part}"])
    torch.manual_seed(scalar_key(3, Purpose.INIT))
    begun = ResNet50Classifier(finetune_config(**SMALL, **shape), CLASSES).state_dict()
    for name in ("conv1", "conv2", "conv3"):
        assert torch.equal(tensors[f"stages.3.blocks.0.{name}.weight"], begun[f"trunk.stages.3.0.{name}.weight"])
    # 3 blocks of 3 convolutions and 3 norms of 4 tensors, the shortcut and the last norm, without stage 4's first.
    assert len(metadata["fresh"]) == 3 * (3 + 3 * 4) + 1 + 4 - 4
    assert set(metadata["fresh"]) <= tensors.keys()
    assert all(name.startswith(("stages.3.", "norm.")) for name in metadata["fresh"])
    counters = {name: int(value) for name, value in tensors.items() if name.endswith("num_batches_tracked")}
    assert {counters["stages.0.blocks.0.norm1.num_batches_tracked"]} == {7}
    assert (counters["stages.3.blocks.0.norm1.num_batches_tracked"], counters["norm.num_batches_tracked"]) == (7, 0)
    assert "46 tensors" in told
    assert "only multiples of 0.125" in told


def test_metadata(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mean": (0.5, 0.25, 0.125), "std": (1.0, 0.5, 0.25), "recipe": "cifar10", "seed": 5}
    finished(tmp_path / "run", "finetune", **settings)
    export(tmp_path / "run", tmp_path / "new" / "out.safetensors")
    _, metadata = read(tmp_path / "new" / "out.safetensors")
    assert metadata == {
        "recipe": "cifar10", "width": 0.0625, "patch": 8, "heads": "4", "mean": [0.5, 0.25, 0.125],
        "std": [1.0, 0.5, 0.25], "fresh": [], "step": 7, "seed": "5", "command": "finetune", "format": "pt",
        "made_by": f"fastselfie {fastselfie.__version__}", "architecture": "resnetv2_50",
    }  # fmt: skip


@STEMS
def test_a_finetuned_run_scores_alike_in_plain_pytorch(shape: dict[str, Any], kernel: int, tmp_path: Path) -> None:
    ours = finished(tmp_path / "run", "finetune", **shape)
    export(tmp_path / "run", tmp_path / "out.safetensors")
    tensors, _ = read(tmp_path / "out.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == resnet50(1 / 16, kernel, CLASSES)
    theirs = load(tmp_path / "out.safetensors")
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        scores = ours(images)
        assert scores.std() > 1e-3
        assert_near(theirs(images), scores, 1e-5)
        assert isinstance(ours, ResNet50Classifier)
        assert_near(theirs.features(images), ours.trunk(images), 1e-5)


@STEMS
def test_a_pretrained_trunk_gives_its_map_in_plain_pytorch(shape: dict[str, Any], kernel: int, tmp_path: Path) -> None:
    """Through stem, stages 1 to 3 and stage 4's first norm of the other network."""
    ours = finished(tmp_path / "run", "pretrain", **shape)
    export(tmp_path / "run", tmp_path / "out.safetensors")
    theirs = load(tmp_path / "out.safetensors")
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        x = theirs.pool(theirs.stem["conv"](images))
        for stage in list(theirs.stages)[:3]:
            x = stage.get_submodule("blocks")(x)
        norm = theirs.get_submodule("stages.3.blocks.0.norm1")
        assert isinstance(ours, Selfie)
        assert_near(norm(x).relu(), ours.trunk.forward_map(images), 1e-5)
        assert theirs(images).shape == (3, 128)


def test_the_example_refuses_what_does_not_fit(tmp_path: Path) -> None:
    finished(tmp_path / "run", "pretrain")
    export(tmp_path / "run", tmp_path / "out.safetensors")
    tensors, _ = read(tmp_path / "out.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        ResNet50V2(1 / 8, large_stem=False).load_state_dict(tensors)
    del tensors["norm.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.bias"):
        ResNet50V2(1 / 16, large_stem=False).load_state_dict(tensors)


@pytest.mark.parametrize(
    ("width", "patch", "said"),
    [
        (1.0, 32, ["create_model('resnetv2_50', num_classes=0) loads it strictly\n"]),
        (0.25, 32, ["num_classes=0, width_factor=0.25) loads it strictly\n"]),
        (0.25, 8, ["width_factor=0.25)", "stem.conv = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)", "Identity()"]),
    ],
)
def test_what_is_said_of_timm(width: float, patch: int, said: list[str], tmp_path: Path) -> None:
    finished(tmp_path / "run", "pretrain", width=width, patch=patch, image_size=4 * patch)
    told = export(tmp_path / "run", tmp_path / "out.safetensors")
    for text in said:
        assert text in told


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that are exported and not."""
    folder = tmp_path_factory.mktemp("runs")
    finished(folder / "whole", "pretrain")
    finished(folder / "attention", "finetune", encoder="resnet36-attention")
    finished(folder / "patches", "finetune", trunk_input="patches")
    finished(folder / "unfinished", "pretrain")
    (folder / "unfinished" / "encoder.safetensors").unlink()
    finished(folder / "torn", "finetune")
    weights = folder / "torn" / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    finished(folder / "foreign", "finetune")
    (folder / "foreign" / "encoder.safetensors").write_bytes((folder / "whole" / "encoder.safetensors").read_bytes())
    for name, old, new in (("other", "finetune", "probe"), ("odd", '"seed": 0', '"seed": "x"')):
        finished(folder / name, "finetune")
        config = folder / name / "config.json"
        config.write_text(config.read_text().replace(old, new))
    (folder / "there.safetensors").write_text("precious")
    (folder / "file").write_text("no folder")
    return folder


@pytest.mark.parametrize(
    ("run", "to", "said"),
    [
        ("whole", "there.safetensors", "there.safetensors: is there already; name another file or remove it"),
        ("whole", "out.pt", "out.pt: must end in .safetensors"),
        ("whole", "file/out.safetensors", "file/out.safetensors: cannot be written"),
        ("attention", "out.safetensors", "finetuned resnet36-attention, whose pooler and classifier have no place"),
        ("patches", "out.safetensors", "was finetuned with --trunk-input patches"),
        ("unfinished", "out.safetensors", "unfinished: is not finished; run its command again"),
        ("torn", "out.safetensors", "encoder.safetensors: cannot be read"),
        ("foreign", "out.safetensors", "foreign: its weights are not of its config.json"),
        ("other", "out.safetensors", "other: is a probe run; name the folder of a pretraining or finetuning run"),
        ("odd", "out.safetensors", "odd/config.json: "),  # a seed that is no number
        ("nothing", "out.safetensors", "nothing: there is no such folder"),
    ],
)
def test_refusals(run: str, to: str, said: str, runs: Path) -> None:
    before = contents(runs)
    assert re.search(re.escape(said), assert_refused(in_process("export", run, "--to", to, cwd=runs)))
    assert contents(runs) == before


def test_the_command(runs: Path, tmp_path: Path) -> None:
    ended = in_process("export", runs / "whole", "--to", "out.safetensors", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "out.safetensors: written, 298 tensors" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert "--to" in assert_refused(in_process("export", runs / "whole", cwd=tmp_path))
