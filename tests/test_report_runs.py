"""What a report reads: series and figures as they were logged, unfinished runs, names, and refusals of damage."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastselfie.cli import status
from fastselfie.errors import UserError
from fastselfie.report.charts import CHARTS, MOST_POINTS, Quantity, curve_points, quantities_of
from fastselfie.report.page import report
from fastselfie.report.runs import distinct_names, read_runs
from fastselfie.report.tables import differences
from tests.command import assert_refused, contents, fastselfie
from tests.run_folders import pretraining_lines, write_placements, write_pretraining, write_run

LOSS, GAP = Quantity(metric="loss", label="loss"), Quantity(metric="context_gap", label="gap")


def test_points_are_the_logged_ones(tmp_path: Path) -> None:
    (run,) = read_runs([write_pretraining(tmp_path / "run")])
    assert curve_points(run, LOSS) == [(10, 0.2), (20, 0.1), (30, 2 / 30), (40, 0.05)]
    assert curve_points(run, GAP) == [(20, 0.02), (40, 0.04)]
    assert run.median("images_per_second") == 125
    assert run.figure("test_accuracy") is None


def test_many_points_are_averaged(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(5 * MOST_POINTS)
    lines = [{"step": step, "loss": value} for step, value in enumerate(values.tolist(), 1)]
    (run,) = read_runs([write_run(tmp_path / "run", "pretrain", lines)])
    steps, means = zip(*curve_points(run, LOSS), strict=True)
    assert steps == tuple(range(5, 5 * MOST_POINTS + 1, 5))
    np.testing.assert_allclose(means, values.reshape(-1, 5).mean(axis=1))


def test_what_pretraining_started_from_is_told(tmp_path: Path) -> None:
    """It decides the figures; what finetuning starts from is in a table of its own."""
    files = (None, tmp_path / "supervised.safetensors")
    runs = read_runs([write_pretraining(tmp_path / str(n), pretrained=file) for n, file in enumerate(files)])
    table = differences(runs)
    assert table is not None
    assert [row.cells[1] for row in table.rows] == ["pretrained None", f"pretrained {files[1]}"]
    tuned = [
        write_run(tmp_path / f"tuned{n}", "finetune", [{"step": 1}], pretrained=file) for n, file in enumerate(files)
    ]
    assert differences(read_runs(tuned)) is None


def test_nearest_neighbours_have_a_chart(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "knn_accuracy": 0.3 + step / 100} for step in (10, 20)]
    run = write_run(tmp_path / "run", "pretrain", lines)
    (read,) = read_runs([run])
    (chart,) = [chart for chart in CHARTS if chart.name == "knn_accuracy"]
    (quantity,) = quantities_of(chart, [read])  # of the pooler there is nothing to show
    assert curve_points(read, quantity) == [(10, 0.4), (20, 0.5)]
    report([run], tmp_path / "page.html")
    assert chart.title in (tmp_path / "page.html").read_text()
    assert (run / "figures" / "knn_accuracy.png").exists()


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "pretrain", pretraining_lines())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    (read,) = read_runs([run])
    assert (read.step, read.result) == (40, None)
    assert read.figure("loss") == 0.05


def test_a_result_speaks_for_a_finished_run(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run", "pretrain", pretraining_lines(), {"loss": 0.25})])
    assert run.figure("loss") == 0.25
    assert run.figure("context_gap") == 0.04


def test_a_run_named_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write_pretraining(tmp_path / "a"), write_pretraining(tmp_path / "b")
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    assert [run.name for run in read_runs([second, first, Path("a"), tmp_path / "b", Path("link")])] == ["b", "a"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/a/run", "/x/b/run", "/x/c"], ["a/run", "b/run", "c"]),
        (["/x/1/a/run", "/x/2/a/run", "/x/2/b/run"], ["1/a/run", "2/a/run", "b/run"]),
        (["/a", "/x/a"], ["/a", "x/a"]),
    ],
)
def test_names(paths: list[str], names: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == names


def change_config(**change: Any) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        record = json.loads((run / "config.json").read_text())
        record["settings"] |= change
        (run / "config.json").write_text(json.dumps(record))

    return damage


def write(name: str, data: str | bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return damage


def moments(**change: Any) -> Callable[[Path], None]:
    moment = {"step": 0, "places": [[0, 5], [1, 2]], "chosen": [[5, 0], [1, 2]]} | change
    return write("placements/moments.jsonl", json.dumps(moment) + "\n")


DAMAGE = [
    (write("config.json", "[]"), "config.json: cannot be read"),
    (write("config.json", '{"command": "dance", "settings": {}, "facts": {}}'), "run: is a dance run; name the folder"),
    (write("config.json", '{"command": "pretrain", "settings": [], "facts": {}}'), "config.json: cannot be read"),
    (change_config(patch=0), "config.json: --patch 0"),
    (change_config(image_size=32.0), "config.json: image_size is 32.0"),
    (change_config(steps="many"), 'config.json: steps is "many"'),
    (change_config(recipe=None), "config.json: recipe is null"),
    (write("metrics.jsonl", ""), "has no line in metrics.jsonl yet"),
    (write("metrics.jsonl", '{"step": 1'), "has no line in metrics.jsonl yet"),
    (write("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n'), "metrics.jsonl: line 2 is damaged"),
    (write("metrics.jsonl", '{"step": 1, "loss": NaN}\n'), "metrics.jsonl: line 1 is damaged (loss is NaN"),
    (write("metrics.jsonl", '{"step": 1, "loss": 1e308}\n'), "metrics.jsonl: line 1 is damaged (loss is 1e+308"),
    (write("metrics.jsonl", '{"step": 1, "loss": 1' + 400 * "0" + "}\n"), "metrics.jsonl: line 1 is damaged"),
    (write("metrics.jsonl", '{"loss": 1}\n'), "metrics.jsonl: line 1 is damaged (no object with a step)"),
    (write("metrics.jsonl", b"\xff\n"), "metrics.jsonl: cannot be read"),
    (write("result.json", "{"), "result.json: cannot be read"),
    (write("result.json", '{"loss": "small"}'), "result.json: cannot be read (loss is"),
    (write("starts.jsonl", '{"step": 0'), "starts.jsonl: cannot be read"),
    (write("starts.jsonl", b"\xff"), "starts.jsonl: cannot be read"),
    (write("starts.jsonl", '{"step": 0}'), "starts.jsonl: cannot be read"),
    (write("starts.jsonl", '{"step": "0", "settings": {}, "made_by": {}}'), "starts.jsonl: cannot be read"),
    (write("starts.jsonl", '{"step": 0, "settings": {}, "made_by": "me"}'), "starts.jsonl: cannot be read"),
    (write("placements/moments.jsonl", '{"step": 0\n'), "moments.jsonl: line 1 is damaged"),
    (moments(places=[[0, 5]]), "moments.jsonl: line 1: `places` must have a list for each of the 2 pictures"),
    (moments(places=[[0, 16], [1, 2]]), "line 1: `places` must hold places from 0 to 15"),
    (moments(chosen=[[0, True], [1, 2]]), "line 1: `chosen` must hold places"),
    (moments(chosen=[[0, 6], [1, 2]]), "line 1: `chosen` of picture 0"),
    (moments(chosen=[[0], [1, 2]]), "line 1: `chosen` of picture 0"),
    (write("placements/picture-1.png", b"\x89PNG\r\n\x1a\n and no more"), "picture-1.png: cannot be read"),
    (lambda run: (run / "placements/picture-0.png").unlink(), "picture-0.png: cannot be read"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE, ids=[said for _, said in DAMAGE])
def test_damage_is_refused(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    run = write_pretraining(tmp_path / "run")
    picture = np.zeros((32, 32, 3), np.uint8)
    write_placements(run, [picture, picture], [{"step": 0, "places": [[0, 5], [1, 2]], "chosen": [[5, 0], [1, 1]]}])
    damage(run)
    before = contents(tmp_path)
    with pytest.raises(UserError) as refused:
        report([run], tmp_path / "report.html")
    assert said in str(refused.value)
    assert str(run) in str(refused.value)
    assert contents(tmp_path) == before


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    run = write_pretraining(tmp_path / "run")
    moment = {"step": 0, "places": [[0, 5]], "chosen": [[5, 0]]}
    write_placements(run, [np.zeros((32, 40, 3), np.uint8)], [moment])
    with pytest.raises(UserError, match=r"picture-0.png: cannot be read \(40x32 pixels, not the run's 32x32\)"):
        report([run], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("runs", "out", "said"),
    [
        (["run", "nowhere"], "page.html", "nowhere: there is no such folder"),
        (["run", "."], "page.html", "is not a run's folder"),
        (["run"], "run", "--out run: must be a file that ends in .html"),
        (["run"], "run/config.json", "--out run/config.json: must be a file that ends in .html"),
        (["run"], "folder.html", "--out folder.html: is a folder"),
        (["run"], "run/config.json/page.html", "--out run/config.json/page.html: cannot be written"),
    ],
)
def test_refused(runs: list[str], out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pretraining(tmp_path / "run")
    (tmp_path / "folder.html").mkdir()
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        report([Path(run) for run in runs], Path(out))
    assert said in str(refused.value)
    assert contents(tmp_path) == before


def test_figures_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_pretraining(tmp_path / "run")
    (run / "figures").write_text("a file")
    with pytest.raises(UserError, match="run/figures: cannot be written"):
        report([run], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().endswith("</html>")
    assert (run / "figures").read_text() == "a file"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name the folder of a run"),
        (("run", "--out", "page.htm"), "metrics.jsonl: line 1 is damaged"),
        (("run", "paper"), "paper: a protocol has a page of its own: name its folder alone, or leave it out"),
    ],
)
def test_refused_words(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    run = write_pretraining(tmp_path / "run")
    (run / "metrics.jsonl").write_text("damaged\n")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "protocol.json").write_text("{}")
    before = contents(tmp_path)
    assert said in assert_refused(fastselfie("report", *words, cwd=tmp_path))
    assert contents(tmp_path) == before


@pytest.fixture
def without_rights() -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder that anybody may read, and what takes root's rights away until the test ends; nobody else has them."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder), lambda: os.seteuid(65534) if user == 0 else None
        os.seteuid(user)
        (Path(folder) / "run").chmod(0o755)


@pytest.mark.parametrize("locked", ["", "config.json", "result.json"])
def test_what_may_not_be_read(
    locked: str, without_rights: tuple[Path, Callable[[], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, which does not tell to remove what is whole."""
    folder, drop = without_rights
    run = write_pretraining(folder / "run")
    words = ["report", str(run), "--out", str(folder / "page.html")]
    assert status(words) == 0  # everything is imported, which without rights could not be
    (run / locked).chmod(0)
    capsys.readouterr()
    drop()
    assert status(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line
    assert "permissions" in line or "leave the run out" in line
    assert "remove" not in line


def test_settings_of_any_bytes_are_shown(tmp_path: Path) -> None:
    runs = [write_pretraining(tmp_path / data, data=data) for data in ("a", os.fsdecode(b"caf\xe9"))]
    report(runs, tmp_path / "page.html")
    assert "data caf?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_run_that_has_logged_nothing_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_pretraining(tmp_path / name) for name in ("old", "young")]
    (runs[1] / "metrics.jsonl").write_text("")
    report(runs, tmp_path / "new" / "page.html")
    assert capsys.readouterr().err == f"{runs[1]}: left out, it has no line in metrics.jsonl yet\n"
    assert "young" not in (tmp_path / "new" / "page.html").read_text()
    assert not (runs[1] / "figures").exists()
