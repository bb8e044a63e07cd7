"""`--deterministic`: what it switches on, that it switches it off again, and that a run says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastselfie.config import PretrainConfig
from fastselfie.errors import UserError
from fastselfie.training.determinism import determinism
from fastselfie.training.pretrain import pretrain


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
