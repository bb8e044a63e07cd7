"""What is exported loads strictly into timm's network and gives our scores there, and timm's weights give its here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from examples.resnetv2 import load
from fastselfie.evaluation.export import export
from fastselfie.models.encoders import ResNet50Classifier
from fastselfie.training.starting_point import read_starting_point
from tests.finished_runs import CLASSES, LARGE_STEM, finished, read, resnet50
from tests.small_networks import assert_near, finetune_config, randomise

try:
    import timm
except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch raises the latter
    pytest.skip(f"timm does not import ({error})", allow_module_level=True)

TOLERANCE = 1e-4


def their_network(**options: Any) -> nn.Module:
    network: nn.Module = timm.create_model("resnetv2_50", **options)
    return network.eval()


def seen_by(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)


def test_the_list_of_names_is_theirs() -> None:
    for classes, head in ((0, None), (CLASSES, CLASSES)):
        state = their_network(num_classes=classes).state_dict()
        assert {name: tuple(value.shape) for name, value in state.items()} == resnet50(classes=head)


def test_a_finetuned_network_of_the_paper_s_width(tmp_path: Path) -> None:
    ours = finished(tmp_path / "run", "finetune", **LARGE_STEM, width=1.0)
    export(tmp_path / "run", tmp_path / "out.safetensors")
    theirs, images = their_network(num_classes=CLASSES), torch.randn(2, 3, 224, 224)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "out.safetensors"), strict=True)
    scores = seen_by(ours, images)
    assert scores.std() > 1e-3
    assert_near(seen_by(theirs, images), scores, TOLERANCE)
    assert isinstance(ours, ResNet50Classifier)
    theirs.get_submodule("head").fc = nn.Identity()
    assert_near(seen_by(theirs, images), seen_by(ours.trunk, images), TOLERANCE)


@pytest.mark.parametrize("width", [0.125, 0.375])
def test_other_widths_and_no_classifier(width: float, tmp_path: Path) -> None:
    finished(tmp_path / "run", "pretrain", **LARGE_STEM, width=width)
    told = export(tmp_path / "run", tmp_path / "out.safetensors")
    assert f"num_classes=0, width_factor={width:g}) loads it strictly" in told
    theirs, images = their_network(num_classes=0, width_factor=width), torch.randn(2, 3, 96, 96)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "out.safetensors"), strict=True)
    assert_near(seen_by(theirs, images), seen_by(load(tmp_path / "out.safetensors"), images), TOLERANCE)


def test_the_small_stem_as_the_user_is_told(tmp_path: Path) -> None:
    ours = finished(tmp_path / "run", "finetune", width=0.25)
    told = export(tmp_path / "run", tmp_path / "out.safetensors")
    names: dict[str, Any] = {"model": their_network(num_classes=CLASSES, width_factor=0.25), "torch": torch}
    for line in told.splitlines():
        if line.startswith("model.stem."):
            exec(line, names)
    theirs, images = names["model"], torch.randn(2, 3, 32, 32)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "out.safetensors"), strict=True)
    assert_near(seen_by(theirs, images), seen_by(ours, images), TOLERANCE)


def test_weights_saved_from_timm(tmp_path: Path) -> None:
    """The way back: same scores here, and the file comes out of an export as it went in."""
    theirs, images = their_network(num_classes=CLASSES, width_factor=0.125), torch.randn(2, 3, 96, 96)
    randomise(theirs)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    config = finetune_config(**LARGE_STEM, width=0.125)
    start = read_starting_point(config, tmp_path / "timm.safetensors")
    ours = ResNet50Classifier(config, CLASSES)
    start.load_into(ours)
    scores = seen_by(theirs, images)
    assert scores.std() > 1e-3
    assert_near(seen_by(ours.eval(), images), scores, TOLERANCE)
    finished(tmp_path / "run", "finetune", **LARGE_STEM, width=0.125)
    safetensors.torch.save_file(ours.state_dict(), tmp_path / "run" / "encoder.safetensors")
    export(tmp_path / "run", tmp_path / "out.safetensors")
    tensors, _ = read(tmp_path / "out.safetensors")
    for name, value in theirs.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensors[name], value), name
