"""The dispatch leaves to plain PyTorch what committed results show the kernels to be slower in, and nothing else; the
fused trunk runs unasked where they show it to be faster, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.kernel_results import slower_in, slower_than_compiled, trunk_wins_on
from fastselfie.kernels import dispatch

RESULTS = Path(__file__).parent.parent / "bench" / "results"
HEAD = ("location_head", (12, 1024))
TOKENS = ("patch_tokens", (1024, 2, 2))


def row(direction: str, kernel_ms: float, compiled_ms: float, **other: Any) -> dict[str, Any]:
    sides = {"kernel": {"median_ms": kernel_ms}, "compiled": {"median_ms": compiled_ms}, "plain": {"median_ms": 9.0}}
    key = [HEAD[0], list(HEAD[1])]
    return {"operation": "location_head", "case": "B=1", "direction": direction, "key": key, "sides": sides, **other}


def test_the_dispatch_holds_what_the_results_say() -> None:
    assert slower_in(RESULTS) == dispatch.SLOWER


def test_results_of_several_files_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, keys in (("kernels_a.json", [HEAD]), ("kernels_b.json", [TOKENS]), ("loader.json", None)):
        text = "no result of kernels" if keys is None else json.dumps({"slower_than_compiled": keys})
        (tmp_path / name).write_text(text)
    assert slower_in(tmp_path) == {HEAD, TOKENS}
    assert slower_in(tmp_path) != dispatch.SLOWER
    monkeypatch.setattr(dispatch, "SLOWER", slower_in(tmp_path))
    assert slower_in(tmp_path) == dispatch.SLOWER


@pytest.mark.parametrize(
    ("backward_ms", "lost"),
    [((2.0, 3.0), []), ((3.0, 2.0), [HEAD])],  # kernel, compiled; forward is 1.5 to 1.0
)
def test_forward_and_backward_are_judged_together(backward_ms: tuple[float, float], lost: list[Any]) -> None:
    assert slower_than_compiled([row("forward", 1.5, 1.0), row("backward", *backward_ms)]) == lost


def test_one_batch_size_that_loses_loses_the_shape() -> None:
    key = [TOKENS[0], list(TOKENS[1])]
    rows = [row("forward", 1.0, 2.0, case="B=256", key=key), row("forward", 2.0, 1.0, case="B=1024", key=key)]
    assert slower_than_compiled(rows) == [TOKENS]
    assert slower_than_compiled(rows[:1]) == []


def test_without_a_compiled_side_nothing_is_said() -> None:
    one = row("forward", 2.0, 1.0)
    del one["sides"]["compiled"]
    assert slower_than_compiled([one]) == []


def report(folder: Path, name: str, device: str, smoke: bool = False, **ms: float | None) -> None:
    """A report's whole step, 5% around these times; a side without a time did not run."""
    sides = {
        "compiled": "fastselfie compiled", "around": "fastselfie compiled + fused",
        "trunk": "fastselfie compiled + fused + trunk",
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for side, value in ms.items():
        told = {"ms": {"lowest": 0.95 * value, "highest": 1.05 * value}} if value else {"not_run": "why"}
        rows.append({"section": "whole step", "side": sides[side], **told})
    rows.append({"section": "trunk alone", "side": sides["trunk"], "ms": {"lowest": 1e-3, "highest": 1e-3}})
    made = {"made_by": {"device": device}, "settings": {"smoke": smoke}, "rows": rows}
    (folder / name).mkdir()
    (folder / name / "report.json").write_text(json.dumps(made))


def test_the_trunk_is_fused_where_the_results_say() -> None:
    assert trunk_wins_on(RESULTS) == dispatch.FASTER_TRUNK


def test_the_trunk_wins_by_the_whole_step_of_every_report(tmp_path: Path) -> None:
    assert trunk_wins_on(tmp_path) == frozenset()
    report(tmp_path, "a", "one", compiled=3.0, around=2.0, trunk=1.8)
    report(tmp_path, "b", "two", compiled=3.0, around=2.0, trunk=2.1)
    report(tmp_path, "c", "three", compiled=2.0, around=3.0, trunk=2.1)
    report(tmp_path, "d", "four", compiled=None, around=None, trunk=2.1)
    report(tmp_path, "e", "five", compiled=3.0, around=2.0, trunk=None)
    report(tmp_path, "f", "six", compiled=3.0, trunk=2.0)
    report(tmp_path, "h", "seven", compiled=3.0, around=2.0, trunk=1.95)  # its slowest round is no faster
    report(tmp_path, "i", "eight", smoke=True, compiled=3.0, around=2.0, trunk=1.0)
    assert trunk_wins_on(tmp_path) == {"one", "six"}
    report(tmp_path, "g", "one", compiled=3.0, around=2.0, trunk=2.5)
    assert trunk_wins_on(tmp_path) == {"six"}
