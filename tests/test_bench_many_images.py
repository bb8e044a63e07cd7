"""The shards of `bench.many_images` are what their format says, and the bench tells of each number of images."""

from __future__ import annotations

import json
import tarfile
import zlib
from pathlib import Path

import pytest

from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.sources import open_source
from tests.command import run_module

pytest.importorskip("PIL")
from bench import tiny_shards

ROOT = Path(__file__).parent.parent


def test_the_shards_are_as_tarfile_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_shards, "_A_SHARD", 1000)
    monkeypatch.setattr(tiny_shards, "_AT_ONCE", 3)
    tiny_shards.write_tiny_shards(tmp_path / "tiny", 1250)
    train = open_source(str(tmp_path / "tiny"), 224).train
    assert isinstance(train, Shards)
    seen: list[tuple[str, bytes]] = []
    for path in sorted((tmp_path / "tiny").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                seen.append((f"{path.name}/{member.name}", file.read()))
    assert [name for name, _ in seen[998:1001]] == [
        "train-000000.tar/000000998.jpg", "train-000000.tar/000000999.jpg", "train-000001.tar/000001000.jpg",
    ]  # fmt: skip
    assert [(train.name(index), train.read(index)) for index in range(len(train))] == seen
    assert train.entries_S["checksum"].tolist() == [zlib.crc32(data) for _, data in seen]
    assert len({data for _, data in seen}) == tiny_shards.DISTINCT


def test_the_bench_in_small(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    sizes = ["--images", "250", "500", "--seconds", "0.1", "--processes", "1", "--batch-size", "16", "--threads", "1"]
    ended = run_module("bench.many_images", *sizes, "--out", tmp_path / "many.json", cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "many.json").read_text())["rows"]
    assert [(row["images"], row["n"]) for row in rows] == [(250, 1), (500, 1)]
    for row in rows:
        assert row["growth_mib"] == row["peak_mib"] - rows[0]["peak_mib"]
        assert all(row[name] > 0 for name in ("open_s", "first_s", "peak_mib", "images_per_second"))
    assert len(ended.stdout.splitlines()) == 3
