"""A run tells what computed which of its steps, and pages do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastselfie.errors import UserError
from fastselfie.recipes import recipe
from fastselfie.report.machines import machines_table
from fastselfie.report.runs import read_runs
from fastselfie.training.starts import note_start, read_starts
from fastselfie.training.versions import versions
from tests.command import SMALL, checkpoint, fastselfie, succeed
from tests.run_folders import write_pretraining

COMMAND = ("pretrain", *SMALL, "--held-out", "20", "--log-every", "1", "--checkpoint-every", "2", "--steps", "4")


def forget(run: Path, *steps: int) -> None:
    (run / "result.json").unlink(missing_ok=True)
    for step in steps:
        shutil.rmtree(checkpoint(run, step))


def test_a_run_that_goes_on_elsewhere(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "from here on" not in succeed(*COMMAND, "--out", run, cwd=tmp_path).stderr
    (first,) = read_starts(run)
    assert (first.step, first.settings["micro_batch_size"], first.settings["device"]) == (0, None, "cpu")
    assert (first.made_by["processes"], first.made_by["torch"]) == ("1", torch.__version__)
    forget(run, 4)
    ended = succeed(*COMMAND, "--micro-batch-size", "4", "--out", run, cwd=tmp_path, processes=2)
    line = f"{run}: from here on with --micro-batch-size 4, not None; processes 2, not 1"
    assert line in ended.stderr.splitlines()
    began, second = read_starts(run)
    assert began == first
    assert (second.step, second.settings["micro_batch_size"], second.made_by["processes"]) == (2, 4, "2")
    forget(run, 4)
    assert "from here on" not in succeed(*COMMAND, "--out", run, cwd=tmp_path).stderr, "what is done again is forgotten"
    assert read_starts(run) == [first, dataclasses.replace(first, step=2)]
    forget(run)
    assert "from here on" not in succeed(*COMMAND, "--out", run, cwd=tmp_path, processes=2).stderr
    assert len(read_starts(run)) == 2, "no step was left to do"


def test_a_copy_without_its_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that gets the files alone. What git says comes first."""
    monkeypatch.setenv("FASTSELFIE_COMMIT", "0123abc")
    commit = versions()["git_commit"]
    assert commit is not None
    assert len(commit.removesuffix("-dirty")) == 40
    monkeypatch.setenv("PATH", "")
    assert versions()["git_commit"] == "0123abc"
    monkeypatch.delenv("FASTSELFIE_COMMIT")
    assert versions()["git_commit"] is None


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(*COMMAND, "--out", run, cwd=tmp_path)
    forget(run, 4)
    (run / "starts.jsonl").write_text("{")
    ended = fastselfie(*COMMAND, "--out", run, cwd=tmp_path)
    said = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2
    assert f"{run}/starts.jsonl: cannot be read" in said
    assert said.endswith("restore it, or remove it")
    (run / "starts.jsonl").unlink()
    succeed(*COMMAND, "--out", run, cwd=tmp_path)
    assert [start.step for start in read_starts(run)] == [2]


def start(step: int, gpu: str | None = None, processes: str = "1", **settings: Any) -> str:
    made_by = {"fastselfie": "1.2", "torch": "2.13", "cores": "64", "gpu": gpu, "processes": processes}
    return json.dumps({"step": step, "settings": settings, "made_by": made_by}) + "\n"


def test_the_page_has_a_row_for_all_that_was_computed_alike(tmp_path: Path) -> None:
    runs = [write_pretraining(tmp_path / name) for name in ("moved", "whole", "stopped", "old")]
    h200 = start(0, "NVIDIA H200", "8", device="cuda", micro_batch_size=None)
    cpu = start(10, device="cpu", norm="numba")
    again = h200.replace('"step": 0', '"step": 7')
    (runs[0] / "starts.jsonl").write_text(h200 + again + cpu)
    (runs[1] / "starts.jsonl").write_text(h200)
    (runs[2] / "starts.jsonl").write_text(h200 + cpu.replace('"step": 10', '"step": 40'))
    table = machines_table(read_runs(runs))
    assert table is not None
    assert table.headings == ("machine", "processes", "versions", "settings", "runs")
    versions = "FastSelfie 1.2, PyTorch 2.13"
    assert [row.cells for row in table.rows] == [
        ("NVIDIA H200", "8", versions, "device cuda", "moved (steps 1 to 10), whole, stopped (steps 1 to 40)"),
        ("64 CPU cores", "1", versions, "device cpu · norm numba", "moved (steps 11 to 40)"),
    ]
    alone = machines_table(read_runs(runs[1:2]))
    assert alone is not None
    assert [row.cells[-1] for row in alone.rows] == ["all"]
    assert machines_table(read_runs(runs[3:])) is None


def test_a_start_that_is_later_than_this_one_is_forgotten(tmp_path: Path) -> None:
    """As after a checkpoint that was found damaged."""
    (tmp_path / "starts.jsonl").write_text(start(0) + start(20) + start(30))
    note_start(tmp_path, 20, recipe("tiny").pretrain)
    assert [start.step for start in read_starts(tmp_path)] == [0, 20]
    (tmp_path / "starts.jsonl").write_text("[]")
    with pytest.raises(UserError, match=r"starts.jsonl: cannot be read"):
        read_starts(tmp_path)
