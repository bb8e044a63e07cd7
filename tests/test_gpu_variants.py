"""What ablations change, online nearest neighbours and probes, on a CUDA device. `make gpu-check` runs these."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.evaluation.finetune import finetune
from fastselfie.training.pretrain import pretrain
from tests.test_gpu import FEW, SMALL, losses

pytestmark = pytest.mark.gpu

VARIANTS: list[dict[str, Any]] = [
    {"pooler": "mean"}, {"pooler": "max"}, {"pooler": "none"}, {"pooler_depth": 0}, {"pooler_depth": 1},
    {"masks": "batch"}, {"position_std": 0.3}, {"positions": "query"}, {"logit_scale": "none"}, {"keep": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_follow_the_cpus_curve(variant: dict[str, Any], kernels: Any, tmp_path: Path) -> None:
    config = PretrainConfig(**FEW | variant, dropout=0.0, precision="fp32", compile="off")
    cpu = pretrain(dataclasses.replace(config, device="cpu", out=tmp_path / "cpu"))
    gpu = pretrain(dataclasses.replace(config, device="cuda", kernels=kernels, out=tmp_path / "gpu"))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=2e-3)


@pytest.mark.parametrize("encoder", ["resnet50", "resnet36-attention"])
def test_finetuning_by_patches_follows_the_cpus_curve(encoder: Any, tmp_path: Path) -> None:
    settings = {name: value for name, value in FEW.items() if name != "held_out"}
    config = FinetuneConfig(
        **settings, scratch=True, encoder=encoder, trunk_input="patches", labels="50%", dropout=0.0,
        precision="fp32", compile="off",
    )  # fmt: skip
    cpu = finetune(dataclasses.replace(config, device="cpu", out=tmp_path / "cpu"))
    gpu = finetune(dataclasses.replace(config, device="cuda", out=tmp_path / "gpu"))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=2e-3)


def test_neighbours_are_looked_for_on_the_device(tmp_path: Path) -> None:
    """The first evaluation comes before rounding has grown: of 32 images at most two may change sides."""
    config = PretrainConfig(**FEW, dropout=0.0, precision="fp32", compile="off", knn_every=1, knn_images=100)
    found = []
    for device in ("cpu", "cuda"):
        run = pretrain(dataclasses.replace(config, device=device, out=tmp_path / device))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append(next(line for line in lines if "knn_accuracy" in line))
    for name in ("knn_accuracy", "knn_accuracy_pooler"):
        assert found[1][name] == pytest.approx(found[0][name], abs=2.5 / 32)


def test_a_probe_is_the_cpus(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="scipy is not installed")
    from fastselfie.evaluation.probe import probe
    from fastselfie.evaluation.probe_config import ProbeConfig

    run = pretrain(PretrainConfig(**SMALL, device="cpu", precision="fp32", compile="off", out=tmp_path / "run"))
    figures = []
    for device in ("cpu", "cuda"):
        config = ProbeConfig(recipe="tiny", pretrained=run, data="synthetic:200", device=device, precision="fp32")
        result = json.loads((probe(dataclasses.replace(config, out=tmp_path / device)) / "result.json").read_text())
        figures.append({(line["network"], line["features"]): line for line in result["probes"]})
    assert figures[0].keys() == figures[1].keys()
    for key, line in figures[0].items():
        for classifier in ("linear", "knn"):
            assert figures[1][key][classifier] == pytest.approx(line[classifier], abs=0.1)  # of 50 images
