"""A run's folder: one process claims it, one at a time works in it, and what a crash has left does not stop a run."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastselfie.errors import UserError
from fastselfie.protocol.leftovers import wait_for_leftovers
from fastselfie.recipes import recipe
from fastselfie.training import run_folder
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.versions import versions
from fastselfie.training.world import World

ALONE = World(device=torch.device("cpu"))


def claim(folder: Path, seed: int) -> bool:
    config = dataclasses.replace(recipe("tiny").pretrain, out=folder, seed=seed)
    try:
        RunFolder(folder).claim(config, "pretrain", {})
    except UserError:
        return False
    return True


@pytest.mark.parametrize("moment", ["versions", "replace_json"])
def test_of_two_that_start_at_once_one_has_the_folder(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As jobs of an array do, whose --out is the same by mistake: the second comes at ``moment`` of the first."""
    folder, claimed, real = tmp_path / "run", {}, getattr(run_folder, moment)

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(run_folder, moment, real)
        claimed[1] = claim(folder, 1)
        return real(*arguments)

    monkeypatch.setattr(run_folder, moment, interrupted)
    claimed[0] = claim(folder, 0)
    assert sorted(claimed.values()) == [False, True]
    assert claimed[json.loads((folder / "config.json").read_text())["settings"]["seed"]]


def test_who_comes_too_late_hears_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> dict[str, str | None]:
        monkeypatch.setattr(run_folder, "versions", versions)
        assert claim(tmp_path, 1)
        return versions()

    monkeypatch.setattr(run_folder, "versions", interrupted)
    with pytest.raises(UserError, match="holds a run with --seed 1, not 0"):
        RunFolder(tmp_path).claim(recipe("tiny").pretrain, "pretrain", {})


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    run = tmp_path / "finetune" / "run"
    run.mkdir(parents=True)
    with RunFolder(run).locked(ALONE):
        with pytest.raises(UserError, match="another process is training in it"), RunFolder(run).locked(ALONE):
            pass
        with pytest.raises(UserError, match="another process still works in finetune/run"):
            wait_for_leftovers(tmp_path, longest_s=0)
    wait_for_leftovers(tmp_path, longest_s=0)


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre is mounted at times: flock(2) is not implemented there."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert claim(tmp_path / "run", 0)
    with RunFolder(tmp_path / "run").locked(ALONE):
        wait_for_leftovers(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()  # stands for a folder of somebody else's: as root, a test may write into any
    refused = pytest.raises(UserError, match=r"--out .*: cannot be written \(Is a directory\)")
    with refused, RunFolder(tmp_path).locked(ALONE):
        pass


@pytest.mark.parametrize("text", ["[" * 100_000, '{"command": "pretrain", "settings": "none", "facts": {}}'])
def test_a_config_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    assert claim(tmp_path, 0)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: cannot be read"):
        RunFolder(tmp_path).claim(recipe("tiny").pretrain, "pretrain", {})


def test_a_torn_line_may_hold_any_bytes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_bytes(b'{"step": 1}\n{"step": 2}\n\0\xff{"st')
    assert folder.has_line(2)
    folder.cut_metrics_back(1)
    assert folder.metrics.read_bytes() == b'{"step": 1}\n'
    assert folder.last_metrics() == {"step": 1}
