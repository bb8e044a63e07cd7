"""What only a CUDA device can show. `make gpu-check` runs these; nothing here may import the argument parser."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.evaluation.finetune import finetune
from fastselfie.kernels import location_head, patch_batch
from fastselfie.training.pretrain import pretrain

pytestmark = pytest.mark.gpu

STEPS = 8
SMALL: dict[str, Any] = {
    "recipe": "tiny", "data": "synthetic:200", "width": 0.125, "batch_size": 32, "steps": STEPS, "lr": 0.05,
    "held_out": 32, "log_every": 2, "evaluate_every": 4, "checkpoint_every": 4,
}  # fmt: skip
FEW = SMALL | {"steps": 3, "log_every": 1, "lr": 0.003}


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("side", "patch"), [(32, 8), (224, 32)])
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_patches_are_the_cpus(side: int, patch: int, pad_mode: Any) -> None:
    B, N = 5, (side // patch) ** 2
    pixels = torch.randint(0, 256, (9, side, side, 3), dtype=torch.uint8)
    tensors: dict[str, Any] = {
        "rows_B": torch.randint(0, 9, (B,)), "corner_B2": torch.randint(0, 9, (B, 2)),
        "flip_B": torch.rand(B) < 0.5, "places_BN": torch.rand(B, N).argsort(dim=1),
        "mean": torch.full((3,), 0.4), "std": torch.full((3,), 0.3),
    }  # fmt: skip
    settings: dict[str, Any] = {"patch": patch, "pad": 4, "pad_mode": pad_mode, "dtype": torch.float32}
    expected = patch_batch(pixels, **tensors, **settings)
    actual = patch_batch(pixels.cuda(), **{name: t.cuda() for name, t in tensors.items()}, **settings)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("m", [4, 12, 25])
def test_the_head_is_the_cpus(m: int) -> None:
    B, N, D = 6, 49, 64
    u, e, h = torch.randn(B, D), torch.randn(N, D), torch.randn(B, m, D)
    places = torch.rand(B, N).argsort(dim=1)[:, :m]
    results = []
    for device in ("cpu", "cuda"):
        leaves = [tensor.to(device).requires_grad_() for tensor in (u, e, h)]
        loss, right = location_head(leaves[0], leaves[1], places.to(device), leaves[2], D**-0.5)
        gradients = torch.autograd.grad(loss, leaves)
        results.append((loss.cpu(), right.cpu(), *(gradient.cpu() for gradient in gradients)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize(("precision", "compiled"), [("fp32", "off"), ("bf16", "off"), ("bf16", "on")])
def test_training_follows_the_cpus_curve(precision: Any, compiled: Any, kernels: Any, tmp_path: Path) -> None:
    """Without dropout, whose bits are a device's own, the first losses agree as far as the arithmetic goes. Rounding
    grows about fivefold a step in a network this deep at its start: later losses prove nothing."""
    config = PretrainConfig(**FEW, dropout=0.0)
    cpu = pretrain(dataclasses.replace(config, device="cpu", precision="fp32", compile="off", out=tmp_path / "cpu"))
    options = {"device": "cuda", "precision": precision, "compile": compiled, "kernels": kernels}
    gpu = pretrain(dataclasses.replace(config, **options, out=tmp_path / "gpu"))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=2e-3 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(("precision", "compiled"), [("fp32", "off"), ("bf16", "off"), ("bf16", "on")])
def test_training_with_the_fused_trunk_follows_the_cpus_curve(precision: Any, compiled: Any, tmp_path: Path) -> None:
    config = PretrainConfig(**FEW | {"width": 0.25}, dropout=0.0)
    cpu = pretrain(dataclasses.replace(config, device="cpu", precision="fp32", compile="off", out=tmp_path / "cpu"))
    options = {"device": "cuda", "precision": precision, "compile": compiled, "trunk": "fused"}
    gpu = pretrain(dataclasses.replace(config, **options, out=tmp_path / "gpu"))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=2e-3 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("settings", [{}, {"trunk": "fused", "width": 0.25}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_the_unbroken_one(settings: dict[str, Any], precision: Any, tmp_path: Path) -> None:
    """Restarted from its middle checkpoint, with dropout."""
    config = PretrainConfig(**SMALL | settings, device="cuda", precision=precision, compile="off", deterministic=True)
    whole = pretrain(dataclasses.replace(config, out=tmp_path / "whole"))
    broken = pretrain(dataclasses.replace(config, out=tmp_path / "broken"))
    newest = broken / "checkpoints" / f"step-{STEPS:09d}"
    (newest / "manifest.json").unlink()
    (broken / "result.json").unlink()
    (broken / "encoder.safetensors").unlink()
    pretrain(dataclasses.replace(config, out=broken))
    assert losses(broken) == losses(whole)
    assert (broken / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize("encoder", ["resnet50", "resnet36-attention"])
def test_finetuning_runs_to_a_test_accuracy(encoder: Any, tmp_path: Path) -> None:
    settings = {name: value for name, value in SMALL.items() if name != "held_out"}
    config = FinetuneConfig(
        **settings, scratch=True, encoder=encoder, device="cuda", labels="50%", out=tmp_path / "run"
    )
    result = json.loads((finetune(config) / "result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 1
    assert result["labelled_images"] == 100


def test_torchrun_with_one_process_equals_none(tmp_path: Path) -> None:
    """NCCL, DDP and synchronised batch norms meet a device; alone they change nothing but rounding."""
    alone = pretrain(
        PretrainConfig(**FEW, dropout=0.0, device="cuda", precision="fp32", compile="off", out=tmp_path / "a")
    )
    script = tmp_path / "train.py"
    script.write_text(
        "from pathlib import Path\nfrom fastselfie.config import PretrainConfig\n"
        "from fastselfie.training.pretrain import pretrain\n"
        f"pretrain(PretrainConfig(**{FEW!r}, dropout=0.0, device='cuda', precision='fp32', compile='off',"
        f" sync_bn=True, out=Path({str(tmp_path / 'b')!r})))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    launcher += ["--nproc-per-node", "1", str(script)]
    subprocess.run(launcher, check=True, timeout=200)
    assert losses(tmp_path / "b") == pytest.approx(losses(alone), rel=2e-3)


@pytest.mark.parametrize("command", ["report", "growth", "modes"])
def test_the_benches_run(command: str, tmp_path: Path) -> None:
    """All of their sides, small: those of recorded graphs and profiled kernels are nowhere else."""
    words = ["--smoke", "--device", "cuda", "--out", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "bench", command, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    rows = json.loads((tmp_path / f"{command}.json").read_text())["rows"]
    assert not [row for row in rows if row.get("failed")]


def test_the_reports_fused_trunk_runs(tmp_path: Path) -> None:
    words = ["--smoke", "--device", "cuda", "--width", "0.25", "--batch-size", "16", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "bench", "report", *words], check=True, timeout=400)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    ran = {row["section"] for row in rows if "ms" in row and row["side"] == "fastselfie compiled + fused + trunk"}
    assert ran == {"whole step", "trunk alone"}
