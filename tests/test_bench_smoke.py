"""Everything of `python -m bench` once, small, as a user starts it; what is in its files, not how fast it was."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.__main__ import main
from tests.command import run_module

pytest.importorskip("matplotlib")
from PIL import Image

ROOT = Path(__file__).parent.parent
WHOLE_STEP = [
    "fastselfie eager", "fastselfie compiled", "fastselfie fused", "fastselfie compiled + fused",
    "fastselfie compiled + fused + trunk", "eager fp32 NCHW", "eager bf16 channels-last", "compiled bf16 channels-last",
    "per-patch loop fp32 NCHW",
]  # fmt: skip
FUSED = {"fastselfie fused", "fastselfie compiled + fused", "fastselfie compiled + fused + trunk"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command left: its JSON, its page, its folder and what it printed."""

    told: dict[str, Any]
    page: str
    folder: Path
    printed: str

    def side(self, section: str, side: str) -> dict[str, Any]:
        (row,) = [row for row in self.told["rows"] if (row["section"], row["side"]) == (section, side)]
        return row

    def sides(self, section: str) -> list[str]:
        return [row["side"] for row in self.told["rows"] if row["section"] == section]


def smoke(folder: Path, name: str, *words: str) -> Result:
    ended = run_module("bench", name, "--smoke", "--device", "cpu", "--out", folder, *words, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    told, page = json.loads((folder / f"{name}.json").read_text()), (folder / f"{name}.md").read_text()
    return Result(told=told, page=page, folder=folder, printed=ended.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return smoke(tmp_path_factory.mktemp("report") / "new" / "folder", "report", "--processes", "2")


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return smoke(tmp_path_factory.mktemp("growth"), "growth")


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return smoke(tmp_path_factory.mktemp("modes"), "modes", "--processes", "2")


def picture(path: Path) -> np.ndarray[Any, Any]:
    """Pixels of a PNG; it must be whole and not of one colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 5
    return pixels


def test_files_are_whole_and_alone(report: Result, growth: Result, modes: Result) -> None:
    def names(result: Result) -> set[str]:
        return {path.name for path in result.folder.iterdir()}

    assert names(report) == {"report.json", "report.md", "roofline.png", "profile.txt"}
    assert names(growth) == {"growth.json", "growth.md", "growth.png"}
    assert names(modes) == {"modes.json", "modes.md"}
    for path in (report.folder / "roofline.png", growth.folder / "growth.png"):
        height, width, _ = picture(path).shape
        assert width > height > 300
    assert "One step: fastselfie compiled" in (report.folder / "profile.txt").read_text()
    assert "aten::convolution" in (report.folder / "profile.txt").read_text()


def test_every_section_has_its_sides(report: Result) -> None:
    assert report.sides("whole step") == WHOLE_STEP
    around = {"fastselfie fused", "fastselfie compiled + fused"}
    assert report.sides("trunk alone") == [side for side in WHOLE_STEP[:-1] if side not in around]
    assert report.sides("pooler and head") == [side for side in WHOLE_STEP[:-1] if not side.endswith("trunk")]
    assert report.sides("optimiser") == ["fused", "foreach", "for-loop"]
    assert report.sides("evaluation") == [
        "fastselfie eager", "fastselfie fused", "eager fp32 NCHW", "eager bf16 channels-last",
    ]  # fmt: skip
    assert report.sides("several processes") == ["gradients meet", "gradients do not meet"]
    for operation in ("patch_batch", "patch_tokens", "location_head"):
        assert report.sides(f"operation {operation} forward") == ["plain PyTorch", "compiled"]
    assert {"loader alone", "end to end"} <= {row["section"] for row in report.told["rows"]}


def test_what_does_not_run_says_why(report: Result, modes: Result) -> None:
    for side in FUSED:
        row = report.side("whole step", side)
        assert row["not_run"] == "the kernels run on a CUDA device"
        assert f"- {side}: not run, {row['not_run']}" in report.page
    assert "needs a CUDA device" in report.side("operation", "kernel")["not_run"]
    assert {row["side"] for row in modes.told["rows"] if "not_run" in row} == {
        "reduce-overhead", "max-autotune-no-cudagraphs", "CUDA graph of the whole step, a fixed batch",
    }  # fmt: skip
    assert not any(row.get("failed") for result in (report, modes) for row in result.told["rows"])


def test_figures_follow_from_the_values_in_the_file(report: Result, growth: Result, modes: Result) -> None:
    for result in (report, growth, modes):
        machine = result.told["machine"]
        assert machine["copy"] > 0 < machine["matrix"]["fp32"]
        first: dict[str, float] = {}
        for row in (row for row in result.told["rows"] if "ms" in row):
            ms, shares = row["ms"], row["shares"]
            assert ms["n"] == len(ms["all"]) == 2
            assert ms["median"] == pytest.approx(statistics.median(ms["all"]))
            assert ms["lowest"] == min(ms["all"]) > 0 < max(ms["all"]) == ms["highest"]
            assert row["time_over_first"] == pytest.approx(
                ms["median"] / first.setdefault(row["section"], ms["median"])
            )
            if row["gflop"]:
                assert row["tflops"] == pytest.approx(row["gflop"] / ms["median"])
                assert shares["matrix"] == pytest.approx(1e12 * row["tflops"] / machine["matrix"][row["dtype"]])
                assert 0 < shares["matrix"] < 1.2
            if row["gbyte"]:
                assert row["gb_per_s"] == pytest.approx(1e3 * row["gbyte"] / ms["median"])
                assert 0 < shares["copy"] == pytest.approx(1e9 * row["gb_per_s"] / machine["copy"])
            assert any(share is not None for share in shares.values()) == (not row["verdict"].startswith("not told"))


def test_operations_are_of_the_side_that_is_named(report: Result) -> None:
    eager, compiled = (report.side("whole step", f"fastselfie {kind}") for kind in ("eager", "compiled"))
    assert compiled["counted_as"] == "fastselfie eager" == eager["counted_as"]
    assert compiled["gflop"] == eager["gflop"]
    assert compiled["gbyte"] is None is compiled["peak_mib"]
    assert eager["peak_mib"] > 0 < eager["gbyte"]
    plain = report.side("whole step", "eager fp32 NCHW")
    assert eager["gflop"] < plain["gflop"]  # 2x2 maps: 16 multiply-adds a pair of channels instead of 36
    parts = [report.side(part, "eager fp32 NCHW")["gflop"] for part in ("trunk alone", "pooler and head")]
    # Together the whole step: but for the gradient of the trunk's input, which the first convolution does not need,
    # and those of the tail's, which both count.
    assert sum(parts) == pytest.approx(plain["gflop"], rel=0.02)
    stem = 4 * 16 * 2 * (8 * 8) * 4 * 3 * 9 / 1e9  # has no gradient of its input
    # Of what halves maps our forward pass counts the padding's zeros, our two gradients do not: 11 of 36 taps of 4x4
    # maps and, in bf16, 23 of 144 of 8x8 ones.
    zeros = 2 * 4 * 16 * 2 * (11 * 16**2 + (23 * 8**2 if eager["dtype"] == "bf16" else 0)) / 1e9
    for side, left_out in (("fastselfie eager", zeros), ("eager fp32 NCHW", 0)):
        step, forward = (report.side(section, side)["gflop"] for section in ("whole step", "evaluation"))
        assert 3 * forward == pytest.approx(step + stem + left_out, rel=1e-3)
    assert report.side("end to end", "from JPEG files")["gflop"] == pytest.approx(eager["gflop"])


def test_waiting_is_a_share(report: Result) -> None:
    assert 0 <= report.side("end to end", "from JPEG files")["shares"]["decode"] <= 1
    assert 0 <= report.side("several processes", "gradients meet")["shares"]["all_reduce"] <= 1
    rates = {side: report.side("loader alone", side) for side in ("fastselfie", "decode")}
    assert rates["decode"]["shares"]["decoder"] == pytest.approx(1)
    assert rates["fastselfie"]["shares"]["decoder"] == pytest.approx(
        rates["fastselfie"]["images_per_second"] / rates["decode"]["images_per_second"]
    )


def test_pages_and_terminal_show_every_row(report: Result, growth: Result, modes: Result) -> None:
    for result in (report, growth, modes):
        for row in result.told["rows"]:
            assert f"| {row['side']} |" in result.page or f"- {row['side']}: not run" in result.page
            assert row["side"].split()[0] in result.printed
        assert result.told["made_by"]["git_commit"] in result.page
        assert {"command", "device", "threads", "torch"} <= result.told["made_by"].keys()
        assert result.told["made_by"]["command"].startswith("python -m bench ")
        assert result.told["machine"]["clocks"] in result.page


def test_growth_has_three_axes_and_their_ideal(growth: Result) -> None:
    points = {section: [row["x"] for row in growth.told["rows"] if row["section"] == section] for section in (
        "by batch size", "by width", "by patch count",
    )}  # fmt: skip
    assert points == {"by batch size": [2, 4], "by width": [0.0625, 0.125], "by patch count": [9, 16]}
    own = {"by batch size": 4, "by width": 0.0625, "by patch count": 16}
    for row in growth.told["rows"]:
        (base,) = [r for r in growth.told["rows"] if r["section"] == row["section"] and r["x"] == own[r["section"]]]
        images = row["x"] if row["section"] == "by batch size" else 4
        assert row["images_per_second"] == pytest.approx(1e3 * images / row["ms"]["median"])
        rate = base["gflop"] / base["ms"]["median"]  # of the recipe's own point
        assert row["ideal_images_per_second"] == pytest.approx(1e3 * images * rate / row["gflop"])
        assert row["share_of_ideal"] == pytest.approx(row["images_per_second"] / row["ideal_images_per_second"])


def test_modes_tell_how_long_they_take_to_start(modes: Result) -> None:
    assert [row["side"] for row in modes.told["rows"] if "ms" in row] == [
        "off", "default", "eager in DDP", "compiled inside DDP, as training has it", "DDP compiled outside",
    ]  # fmt: skip
    for row in modes.told["rows"]:
        assert "ms" not in row or row["startup_s"] > row["ms"]["lowest"] / 1e3 / 2


def test_a_result_compared_with_itself(report: Result, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(report.folder / "report.json")
    assert main(["compare", path, path]) == 0
    printed = capsys.readouterr().out
    assert "warning" not in printed
    ran = [row for row in report.told["rows"] if "ms" in row]
    assert printed.count("1.000") >= len(ran) == printed.count("too few rounds to tell")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "--recipe", "cifar", "--out", "x"], "recipe cifar: there is none of that name"),
        (["report", "--data", "nowhere", "--out", "x"], "--data: 'nowhere' does not exist"),
        (["report", "--data", "empty", "--out", "x"], "--data: empty is an empty folder"),
        (["report", "--rounds", "0", "--out", "x"], "--rounds 0: must be at least 1"),
        (["growth", "--width", "-1", "--out", "x"], "--width -1.0: must be above 0"),
        (["growth", "--batch-size", "0", "--out", "x"], "--batch-size 0: must be at least 1"),
        (["modes", "--processes", "0", "--out", "x"], "--processes 0: must be from 1 to 64 on this machine"),
        (["modes", "--processes", "3", "--out", "x"], "--batch-size 32: must be a multiple of the 3 processes"),
        (["report", "--out", "file/x"], "--out file/x: cannot be written (Not a directory)"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(f"bench: {told}")
    assert not list(tmp_path.glob("x/*"))
