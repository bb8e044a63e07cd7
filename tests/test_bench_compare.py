"""`python -m bench compare`: ratios, spread and warnings of results made up by hand, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.compare import changes, warnings
from bench.report.rows import not_run, spread


def result(device: str = "a CPU", torch: str = "2.13.0", **sides: list[float]) -> dict[str, Any]:
    rows = [{"section": "step", "side": side, "ms": spread(values)} for side, values in sides.items()]
    rows.append(not_run("step", "fused", "no GPU"))
    return {"made_by": {"device": device, "torch": torch}, "settings": {"batch_size": 32}, "rows": rows}


def test_medians_ratios_and_spread() -> None:
    few = [2.0, 2.5, 3.0]
    before = result(
        faster=[2.0, 2.5, 2.5, 3.0], slower=[1.0, 1.0, 1.0, 1.5], noise=[1.0, 4.0, 4.0, 9.0], few=few, gone=[5.0]
    )
    after = result(
        faster=[1.0, 1.5, 1.5, 1.9], slower=[2.0, 1.6, 2.0, 3.0], noise=[2.0, 5.0, 5.0, 8.0], few=[9.0] * 4, new=[7.0]
    )
    assert changes(before, after) == [
        ("step", "faster", "2.5", "1.5", "0.600", "faster"),
        ("step", "slower", "1", "2", "2.000", "slower"),
        ("step", "noise", "4", "5", "1.250", "within the spread"),
        ("step", "few", "2.5", "9", "3.600", "too few rounds to tell"),
        ("step", "gone", "5", "", "", "in A alone"),
        ("step", "new", "", "7", "", "in B alone"),
    ]


def test_results_of_other_machines_are_told_apart() -> None:
    a, b = result(ours=[1.0]), result("a GPU", "2.11.0", ours=[1.0])
    assert warnings(a, a) == []
    assert warnings(a, b) == [
        "warning: other device: a CPU in A, a GPU in B",
        "warning: other torch: 2.13.0 in A, 2.11.0 in B",
    ]
    b["settings"] = {"batch_size": 64}
    assert warnings(a, b)[-1] == "warning: other settings: batch_size 32 in A, 64 in B"


def test_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, told in zip(paths, (result(ours=[2.0] * 4), result("a GPU", ours=[3.0] * 4)), strict=True):
        path.write_text(json.dumps(told))
    assert main(["compare", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    assert "warning: other device: a CPU in A, a GPU in B" in printed
    for cell in ("step", "ours", "2", "3", "1.500", "slower"):
        assert cell in printed


GOOD = json.dumps(result(ours=[2.0]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "b.json: cannot be read (No such file or directory)"),
        ("{", "b.json: is not JSON"),
        ("[]", "b.json: holds no rows of timings"),
        ('{"made_by": {}, "settings": {}, "rows": [{"ms": 3}]}', "b.json: holds no rows of timings"),
        (GOOD.replace("2.0", '"x"'), "b.json: holds no rows of timings"),
        (GOOD.replace("2.0", "0.0"), "b.json: holds no rows of timings"),
        (GOOD.replace("ours", "theirs"), "have no side in common"),
    ],
)
def test_a_bad_file_is_one_line(
    text: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(GOOD)
    if text is not None:
        b.write_text(text)
    assert main(["compare", str(a), str(b)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("bench: ")
    assert told in printed.err
