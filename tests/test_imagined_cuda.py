"""Whole runs on an imagined CUDA device: which tensor is where, what the host waits for, and the CPU's own numbers.

What only a real device shows is in `tests/test_gpu.py`. Truth is the same run on the CPU, in fp32 and without dropout.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.evaluation.finetune import finetune
from fastselfie.evaluation.probe_config import ProbeConfig
from fastselfie.kernels import using
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.source import ResidentSplit
from fastselfie.pipelines.view import View
from fastselfie.training.pretrain import pretrain
from tests.imagined_cuda import DEVICE, WAITED, Imagined, imagined_cuda
from tests.test_host_sync import ablated, finetuning, pretraining, trainer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: tests/test_gpu.py")

SMALL: dict[str, Any] = {
    "recipe": "tiny", "data": "synthetic:100", "width": 0.0625, "heads": 4, "batch_size": 16, "steps": 2, "lr": 0.003,
    "log_every": 1, "evaluate_every": 1, "checkpoint_every": 1, "compile": "off", "dropout": 0.0, "precision": "fp32",
    "kernels": "off",
}  # fmt: skip


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    return lambda: imagined_cuda(monkeypatch)


def lines(run: Path) -> list[dict[str, float]]:
    timed = ("images_per_second", "data_wait", "peak_gib")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in logged]


def both(work: Callable[[Any], Path], config: Any, folder: Path, cuda: Callable[[], Any]) -> Iterator[Path]:
    yield work(dataclasses.replace(config, device="cpu", out=folder / "cpu"))
    with cuda():
        yield work(dataclasses.replace(config, device="cuda", out=folder / "cuda"))


def assert_alike(here: Path, there: Path) -> None:
    ours, theirs = lines(there), lines(here)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(expected, rel=2e-2, abs=0.1)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"knn_every": 1, "knn_images": 50, "micro_batch_size": 8}, {"pooler": "max", "masks": "batch", "sync_bn": True}],
)
def test_pretraining(settings: dict[str, Any], tmp_path: Path, cuda: Callable[[], Any]) -> None:
    """Steps, evaluations, checkpoints and the pictures on the way."""
    assert_alike(*both(pretrain, PretrainConfig(**SMALL | settings, held_out=32), tmp_path, cuda))


@pytest.mark.parametrize("settings", [{}, {"encoder": "resnet36-attention", "trunk_input": "patches"}])
def test_finetuning(settings: dict[str, Any], tmp_path: Path, cuda: Callable[[], Any]) -> None:
    assert_alike(*both(finetune, FinetuneConfig(**SMALL | settings, scratch=True, labels="50%"), tmp_path, cuda))


def test_a_run_goes_on_and_is_probed(tmp_path: Path, cuda: Callable[[], Any]) -> None:
    pytest.importorskip("scipy", reason="scipy is not installed")
    from fastselfie.evaluation.probe import probe

    config = PretrainConfig(**SMALL, held_out=32, device="cuda", out=tmp_path / "run")
    with cuda():
        run = pretrain(config)
        whole = lines(run)
        for name in ("checkpoints/step-000000002/manifest.json", "result.json", "encoder.safetensors"):
            (run / name).unlink()
        pretrain(config)
        assert lines(run) == whole
        asked = ProbeConfig(
            recipe="tiny", pretrained=run, data="synthetic:100", device="cuda", precision="fp32", kernels="off",
            neighbours=5, labels="50%", out=tmp_path / "probe",
        )  # fmt: skip
        assert len(json.loads((probe(asked) / "result.json").read_text())["probes"]) == 8


@pytest.mark.parametrize("rows", [[5, 2, 9], list(range(10)), None])
def test_a_device_holds_the_images_that_are_seen(rows: list[int] | None, cuda: Callable[[], Any]) -> None:
    """Neighbours are looked for among a few images of the split that is trained on, labels held back are judged by."""
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    split, view = ResidentSplit(images_SHW3=images, labels_S=np.arange(10) * 3), View(size=8, pad=2, flip=True)
    chosen = None if rows is None else torch.tensor(rows)
    here = ResidentPipeline(split, view=view, seed=1, device=torch.device("cpu"), rows=chosen)
    raw: dict[str, Any] = {"mean": torch.zeros(3), "std": torch.ones(3)}
    with cuda(), using("off"):
        there = ResidentPipeline(split, view=view, seed=1, device=DEVICE, rows=chosen)
        there_raw = {name: value.to(DEVICE) for name, value in raw.items()}
        plain = next(here.in_order([(0, 3)])), next(there.in_order([(0, 3)]))
        for expected, batch in ((here.batch(1, 8), there.batch(1, 8)), plain):
            assert batch.pixels.device == DEVICE
            assert len(batch.pixels) == len(rows or images)
            assert batch.sample_B.tolist() == expected.sample_B.tolist()
            assert batch.labels_B.tolist() == expected.labels_B.tolist()
            pixels = batch.patches(patch=4, dtype=torch.float32, **there_raw).cpu()
            assert torch.equal(pixels, expected.patches(patch=4, dtype=torch.float32, **raw))


@pytest.mark.parametrize("make", [pretraining, ablated, finetuning])
def test_steps_wait_for_nothing(make: Callable[..., Any], tmp_path: Path, cuda: Callable[[], Any]) -> None:
    with cuda(), using("off"):
        run = trainer(make, DEVICE, tmp_path)
        WAITED.clear()
        for step in range(2):
            run.step(step)
        assert WAITED == []
        run.window.take()
        assert WAITED == ["tolist"]
        for parameter in run.network.parameters():
            assert parameter.device == run.optimizer.state[parameter]["momentum_buffer"].device == DEVICE


def test_the_device_has_cudas_rules(cuda: Callable[[], Any]) -> None:
    with cuda():
        here, there = torch.ones(3), torch.ones(3, device="cuda", requires_grad=True)
        assert isinstance(there, Imagined)
        assert isinstance(here.to(DEVICE), Imagined)
        with pytest.raises(RuntimeError, match="one device"):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.detach().numpy()
        (2 * there.sum()).backward()
        assert there.grad is not None
        assert torch.equal(there.grad.cpu(), torch.full((3,), 2.0))
        WAITED.clear()
        float(there.sum().detach())
        assert len(there[there > 0]) == 3
        assert WAITED == ["_local_scalar_dense", "index"]
        weight = torch.ones(2, 3, device="cuda", requires_grad=True)
        weight.grad = torch.ones(3, 2, device="cuda").T
        with pytest.raises(RuntimeError, match="laid out alike"):
            torch.optim.SGD([weight], lr=1.0, fused=True).step()
