"""Which version of an operation runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastselfie.kernels import dispatch, location_head, using

launcher: Any = pytest.importorskip("fastselfie.kernels.fused.location_head")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one word with each run of the location head's kernel."""
    seen: list[str] = []
    run = launcher.location_head

    def watched(*arguments: Any) -> Any:
        seen.append("kernel")
        return run(*arguments)

    monkeypatch.setattr(launcher, "location_head", watched)
    return seen


def ask(device: str, m: int = 2, D: int = 16) -> float:
    """The loss of a question of which every answer is as good as another: log(m)."""
    h = torch.zeros(1, m, D, device=device)
    places = torch.arange(m, device=device)[None]
    return location_head(h[:, 0], h[0], places, h, 1.0)[0].item()


def test_on_a_cpu_plain_pytorch_runs_unless_told(ran: list[str]) -> None:
    assert ask("cpu") == pytest.approx(0.6931472)
    with using("auto"):
        ask("cpu")
    with using("off"):
        ask("cpu")
    assert ran == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels take no tensors on a CPU")
def test_on_runs_the_kernel(ran: list[str]) -> None:
    with using("on"):
        assert ask("cpu") == pytest.approx(0.6931472)
        with using("off"):
            ask("cpu")
    assert ran == ["kernel"]


def test_auto_on_a_gpu_takes_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the choice alone, which needs no GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert dispatch.fused("location_head", cuda, 2, 16)
    assert not dispatch.fused("location_head", cuda, 65, 16, fits=False)
    assert not dispatch.fused("location_head", cpu, 2, 16)
    with using("on"):
        assert dispatch.fused("location_head", cpu, 65, 16, fits=False)  # and is refused, in words
    with using("off"):
        assert not dispatch.fused("location_head", cuda, 2, 16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert not dispatch.fused("location_head", cuda, 2, 16)


@pytest.mark.gpu
def test_auto_runs_the_kernel_on_a_gpu(ran: list[str]) -> None:
    assert ask("cuda") == pytest.approx(0.6931472)
    assert ran == ["kernel"]
    ask("cuda", m=65)
    ask("cuda", D=24)
    assert ran == ["kernel"]


def test_what_is_known_to_be_slower_is_left_to_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "SLOWER", frozenset({("location_head", (12, 1024))}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    cuda = torch.device("cuda")
    assert not dispatch.fused("location_head", cuda, 12, 1024)
    assert dispatch.fused("location_head", cuda, 4, 1024)
    assert dispatch.fused("patch_tokens", cuda, 12, 1024)
    with using("on"):
        assert dispatch.fused("location_head", cuda, 12, 1024)


def test_using_restores_what_was_chosen() -> None:
    cpu = torch.device("cpu")
    seen = []

    def fail() -> None:
        with using("off"):
            seen.append(dispatch.fused("location_head", cpu))
            raise KeyError

    with using("on"):
        with pytest.raises(KeyError):
            fail()
        seen.append(dispatch.fused("location_head", cpu))
    seen.append(dispatch.fused("location_head", cpu))
    assert seen == [False, True, False]


def test_using_refuses_other_words() -> None:
    word: Any = "yes"
    with pytest.raises(ValueError, match="kernels: expected auto, on or off, got 'yes'"), using(word):
        pass


def test_what_a_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert dispatch.lacks("cuda") is None
    assert "a CUDA device" in str(dispatch.lacks("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.lacks("cpu") is None
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    assert "pip install triton" in str(dispatch.lacks("cuda"))
