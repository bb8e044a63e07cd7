"""The loader's benches: what they shrink, that their peers load what they should, and that they run."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import gpu_decoding
from bench.baselines.dali_example import dali_example
from bench.baselines.torch_loader import Photographs, torch_loader
from bench.images_in_memory import read_into_memory
from bench.loader import ALL, make_parser, ratios
from bench.loader_parts import PARTS
from bench.own_loop import SIDES
from bench.plain_photos import DRAWS, decode
from tests.command import run_module
from tests.packed_shards import write_packed
from tests.photographs import jpeg, picture, png, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
pytest.importorskip("numba", reason="numba is not installed")

DATA = [jpeg(picture(60, 50 + index, index)) for index in range(20)]


def test_images_are_shrunk_where_they_are_larger(tmp_path: Path) -> None:
    images = {"wide": jpeg(picture(300, 1000)), "high": png(picture(800, 400)), "small": jpeg(picture(200, 240))}
    files = write(tmp_path, images.items(), labels=[3, 4, 5])
    sizes = {0: [(1000, 300), (400, 800), (240, 200)], 500: [(500, 150), (250, 500), (240, 200)],
             256: [(853, 256), (256, 512), (240, 200)]}  # fmt: skip
    for shrink, expected in sizes.items():
        held = read_into_memory(files, shrink)
        assert [Image.open(io.BytesIO(data)).size for data in held.data] == expected
        assert held.read(2) == images["small"]
        assert held.labels_S.tolist() == [3, 4, 5]
        assert held.mean_kilobytes == pytest.approx(sum(len(data) for data in held.data) / 3000)
    halved = decode(read_into_memory(files, 500).data[1]).astype(int)
    assert np.abs(halved[5:-5, 5:-5] - picture(500, 250)[5:-5, 5:-5]).mean() < 4


def test_the_peers_load_whole_rounds_again_and_again() -> None:
    peer: dict[str, Any] = {"size": 32, "min_area": 0.08, "batch": 8, "batches": 3}
    for load in (torch_loader(DATA, processes=1, **peer), dali_example(DATA, threads=1, prefetch=2, **peer)):
        for _ in range(3):
            load()


def test_the_dataset_draws_anew_each_time() -> None:
    data = Photographs(data=DATA, size=16, min_area=0.08)
    views = [data[0].numpy().tobytes() for _ in range(40)]
    assert len(set(views)) > 30
    assert DRAWS == 22


def test_the_dataset_normalises() -> None:
    torch.manual_seed(0)
    pixels = Photographs(data=DATA, size=16, min_area=0.08)[3].numpy().astype(np.float64)
    torch.manual_seed(0)
    images = Photographs(data=DATA, size=16, min_area=0.08, normalised=True)[3]
    expected = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(images.numpy(), expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_ratios_are_of_medians() -> None:
    rates = {"fastselfie": {"median": 300.0}, "pillow": {"median": 100.0}, "decode": {"median": 400.0}}
    assert ratios(rates) == {"pillow": 3.0, "decode": 0.75}


def test_ways_of_a_gpus_decoder_that_fail_are_told(tmp_path: Path) -> None:
    """Each is a process of its own: what that does is what is said of it."""
    out = tmp_path / "loader.json"
    rate = {"median": 5.0, "lowest": 4.0, "highest": 6.0, "n": 3, "all": [4.0, 5.0, 6.0]}
    file = repr(json.dumps({"images_per_second": {"fastselfie": rate}}))
    programs = {
        "SIGSEGV: decoding": "import os; print('decoding', flush=True); os.kill(os.getpid(), 11)",
        "status 1: RuntimeError: nvImageCodec failure: '#8'": "raise RuntimeError(\"nvImageCodec failure: '#8'\")",
        "status 3: without a word": "raise SystemExit(3)",
        "5 images/s": f"open({str(out)!r}, 'w').write({file}); print('HW decoder available num_hw_engines=7')",
    }
    tried = []
    for (regions, share), program in zip(gpu_decoding.WAYS, programs.values(), strict=False):
        found = gpu_decoding.attempt([sys.executable, "-c", program], out)
        tried.append({"region_decoding": regions, "hardware_share": share} | found)
    assert [line.split(": ", 1)[1] for line in gpu_decoding.told(tried).splitlines()] == list(programs)
    assert tried[-1]["images_per_second"] == rate
    assert tried[-1]["log"] == ["HW decoder available num_hw_engines=7"]


@pytest.mark.parametrize(("regions", "share"), gpu_decoding.WAYS)
def test_every_way_of_a_gpus_decoder_can_be_asked_for(regions: str, share: float, tmp_path: Path) -> None:
    asked = gpu_decoding.words(tmp_path, regions, share, ["--batch-size=8", "--batches=2", "--rounds=3"], tmp_path)
    given = make_parser().parse_args(asked)
    assert (given.region_decoding, given.hardware_share, given.device, given.alone) == (regions, share, "cuda", True)
    assert (given.batch_size, given.batches, given.rounds, given.data, given.out) == (8, 2, 3, tmp_path, tmp_path)
    asked[asked.index("cuda")] = "cpu"
    refused = run_module("bench.loader", *asked, cwd=tmp_path)
    assert refused.returncode == 1
    assert "--hardware-share, --region-decoding: are for a GPU" in refused.stderr


@pytest.mark.parametrize("bench", ["loader", "loader_parts", "own_loop"])
def test_a_bench_runs(bench: str, tmp_path: Path) -> None:
    write(tmp_path / "photos", [(f"{index:02}.jpg", data) for index, data in enumerate(DATA)])
    out = tmp_path / "told.json"
    options: list[str | Path] = ["--data", tmp_path / "photos", "--rounds", "2", "--out", out]
    if bench != "loader_parts":
        options += ["--device", "cpu", "--batch-size", "8", "--batches", "2", "--threads", "1"]
    if bench == "loader":
        options += ["--shrink", "500"]
    ended = run_module(f"bench.{bench}", *options, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(out.read_text())
    assert told["made_by"]["git_commit"]
    if bench == "loader":
        assert set(told["ratio_of_medians"]) == set(ALL) - {"fastselfie"}
    if bench != "loader_parts":
        sides = ALL if bench == "loader" else SIDES
        assert tuple(told["images_per_second"]) == sides
        assert all(rate["n"] == 2 and rate["lowest"] > 0 for rate in told["images_per_second"].values())
        assert all(side in ended.stdout for side in sides)
        return
    for result in told["sizes"].values():
        parts = result["microseconds"]
        assert list(parts) == [*PARTS, "rest", "whole"]
        for values in zip(*result["all"].values(), strict=True):
            assert sum(values[:-1]) == pytest.approx(values[-1])
    assert all(part in ended.stdout for part in PARTS)


def test_the_bench_of_packings_runs(tmp_path: Path) -> None:
    write(tmp_path / "photos", [(f"{index:02}.jpg", data) for index, data in enumerate(DATA)])
    out = tmp_path / "told.json"
    ended = run_module(
        "bench.packings", "--data", tmp_path / "photos", "--rounds", "2", "--out", out, "--batch-size", "8",
        "--batches", "2", "--threads", "1", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(out.read_text())
    sizes = told["mean_kilobytes"]
    assert list(sizes) == ["needed", "markers", "all", "256"]
    assert sizes["needed"] == sizes["256"] == pytest.approx(sum(map(len, DATA)) / 20e3)  # all are small
    assert sizes["all"] != sizes["needed"] < sizes["markers"]
    for rates in told["images_per_second"].values():
        assert list(rates) == ["torch DataLoader", "fastselfie", "fastselfie DALI", "DALI example"]
        assert all(rate["n"] == 2 and rate["lowest"] > 0 for rate in rates.values())
    assert all(side in ended.stdout for side in rates)


def test_the_bench_of_storage_counts_what_a_server_sees(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fastselfie[http] is not installed")
    shards = write_packed(tmp_path / "shards", DATA, labels=[0, 1] * 10, classes=("a", "b"), a_shard=6)
    out = tmp_path / "told.json"
    ended = run_module(
        "bench.storage", "--data", shards, "--out", out, "--latency-ms", "5", "--outages", "silent 0.3s", "--around-s",
        "0.1", "--rounds", "2", "--batch-size", "10", "--batches", "2", "--threads", "1", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(out.read_text())
    (rate,) = told["rates"]
    assert rate["requests_an_image"] == 1
    assert rate["bytes_an_image"] == told["settings"]["mean_bytes"] == sum(map(len, DATA)) / len(DATA)
    (outage,) = told["outages"]
    assert (outage["kind"], outage["refused"], outage["said"]) == ("silent", 0, None)
    assert outage["longest_wait_s"] > 0.2
