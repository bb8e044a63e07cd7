"""`--deterministic`: what it switches on, that it switches it off again, and that a run says so."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastselfie.config import PretrainConfig
from fastselfie.errors import UserError
from fastselfie.models.encoders import encoder
from fastselfie.models.selfie import Selfie
from fastselfie.training.determinism import determinism
from fastselfie.training.pretrain import pretrain
from tests.small_networks import SETTINGS, finetune_config, pretrain_config, question


def state() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark,  # type: ignore[attr-defined]
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )  # fmt: skip


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_it_holds_inside_alone(workspace: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    before = state()
    with determinism(True):
        assert state() == (True, False, False, False, workspace or ":4096:8")
    assert state() == before
    with pytest.raises(KeyError), determinism(True):
        raise KeyError
    assert state() == before
    with determinism(False):
        assert state() == before


def test_an_operation_without_such_an_algorithm_is_named() -> None:
    with pytest.raises(UserError, match=r"^--deterministic: max_unpooling2d_forward_out does not have a deterministic"):
        fail(torch.nn.functional.max_unpool2d, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64), 2)
    with pytest.raises(RuntimeError, match="shape"):
        fail(torch.mm, torch.ones(2, 3), torch.ones(2, 3))


def fail(operation: Callable[..., object], *arguments: object) -> None:
    with determinism(True):
        operation(*arguments)


@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
@pytest.mark.parametrize("name", ["selfie", "resnet50", "resnet36-attention"])
def test_no_gradient_is_one_that_cuda_has_not(settings: dict[str, Any], name: Any) -> None:
    """Of what `torch.use_deterministic_algorithms` says to raise where a CUDA tensor is differentiated."""
    if name == "selfie":
        config = pretrain_config(**settings)
        patches, places_BN = question(config, images=2)
        loss, _ = Selfie(config)(patches.float(), places_BN)
    else:
        size = settings["image_size"]
        network = encoder(finetune_config(**settings, encoder=name), 10)
        loss = torch.nn.functional.cross_entropy(network(torch.randn(2, 3, size, size)), torch.arange(2))
    nodes, to_do = set(), [loss.grad_fn]
    while to_do:
        node = to_do.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            to_do += [following for following, _ in node.next_functions]
    names = {node.name() for node in nodes}
    assert "AddmmBackward0" in names
    lacking = "AdaptiveAvgPool|AdaptiveMaxPool|FractionalMaxPool|MaxUnpool|Upsample|ReflectionPad|Nll.*2D|Ctc|Cum"
    assert not [name for name in names if re.search(lacking, name)]


def test_a_run_is_deterministic_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: seen.append((state()[0], state()[3])) or step(self))  # type: ignore[func-returns-value]
    for asked in (True, False):
        config = PretrainConfig(
            recipe="tiny", data="synthetic:20", width=0.125, batch_size=4, steps=1, held_out=4, device="cpu",
            compile="off", deterministic=asked, out=tmp_path / str(asked),
        )  # fmt: skip
        pretrain(config)
        assert ("determinism on (asked for)" in capsys.readouterr().err) == asked
    assert seen == [(True, False), (False, True)], "cuDNN tries its algorithms where nothing forbids it"
