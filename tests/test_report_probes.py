"""Probes on a report's page: their table, one without a result, and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastselfie.errors import UserError
from fastselfie.report.page import report
from tests.run_folders import write_pretraining
from tests.test_report_page import Page

HEADINGS = ["probe", "network", "labels", "features", "linear", "kNN", "untrained, linear", "most frequent class"]


def write_probe(path: Path, **change: Any) -> Path:
    """The folder of a probe as `fastselfie probe --no-knn` leaves it, but for nearest neighbours on the pooler."""
    found = [("pretrained", "trunk-image", 0.5, None), ("pretrained", "pooler", 0.25, 0.125)]
    found += [("fresh", "trunk-image", 0.375, None), ("fresh", "pooler", 0.0, None)]
    probes = [dict(zip(("network", "features", "linear", "knn"), values, strict=True)) for values in found]
    result = {"pretrained": "runs/full", "step": 1200, "labels": "8%", "most_frequent_class": 0.1, "probes": probes}
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"command": "probe", "settings": {}, "facts": {}}))
    (path / "result.json").write_text(json.dumps(result | change))
    return path


def test_the_table(tmp_path: Path) -> None:
    """`fastselfie report runs/*` after the README's commands: a run and a probe on one page."""
    report([write_pretraining(tmp_path / "full"), write_probe(tmp_path / "looked")], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    network = "full, step\N{NO-BREAK SPACE}1,200"
    assert Page(text).tables[-1] == [
        HEADINGS,
        ["looked", network, "8%", "trunk-image", "50.0%", "–", "37.5%", "10.0%"],
        ["looked", network, "8%", "pooler", "25.0%", "12.5%", "0.0%", "10.0%"],
    ]
    assert "1 pretraining run, 1 probe" in text
    assert not (tmp_path / "looked" / "figures").exists()


def test_probes_alone(tmp_path: Path) -> None:
    report([write_probe(tmp_path / "one"), write_probe(tmp_path / "two")], tmp_path / "page.html")
    (table,) = Page((tmp_path / "page.html").read_text()).tables
    assert [row[0] for row in table] == ["probe", "one", "one", "two", "two"]


def test_one_without_a_result_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, probe = write_pretraining(tmp_path / "full"), write_probe(tmp_path / "looked")
    (probe / "result.json").unlink()
    report([run, probe], tmp_path / "page.html")
    assert capsys.readouterr().err == f"{probe}: left out, the probe has no result yet\n"
    assert "Frozen features" not in (tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match="looked: has no result yet; wait for it"):
        report([probe], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"probes": None},
        {"probes": [{"network": "fresh"}]},
        {"most_frequent_class": 10},
        {"step": "many"},
        {"probes": [{"network": "fresh", "features": "pooler", "linear": float("nan"), "knn": None}]},
    ],
)
def test_damage_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "looked", **change)
    with pytest.raises(UserError, match=r"looked/result.json: cannot be read .*; restore the file or leave the probe"):
        report([write_pretraining(tmp_path / "full"), probe], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
