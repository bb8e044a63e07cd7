"""The page: whole, safe and self-contained, with the runs' figures in its tables and charts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.report.comparison import finetuning_table
from fastselfie.report.page import report
from fastselfie.report.palette import COLOURS, DARK, DASHES, LIGHT, colour_of, dashes_of
from fastselfie.report.runs import of_kind, read_runs
from fastselfie.report.tables import headlines
from tests.command import succeed
from tests.run_folders import pretraining_lines, write_finetuning, write_pretraining, write_run

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """A page's tags, which must be balanced, its ids and links, and the text of its tables and charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.paths: dict[str, int] = {}
        self.scripts = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def pages_of(folder: Path, *runs: Path) -> str:
    report(list(runs), folder / "report.html")
    return (folder / "report.html").read_text()


def some_runs(folder: Path) -> list[Path]:
    full = write_pretraining(folder / "full")
    return [
        full,
        write_pretraining(folder / "half", keep=0.5),
        write_finetuning(folder / "tuned", 0.625, full),
        write_finetuning(folder / "scratch", 0.5),
    ]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    """Some runs and their page."""
    folder = tmp_path_factory.mktemp("shown")
    runs = some_runs(folder)
    return runs, pages_of(folder, *runs)


def test_the_page_is_whole_and_needs_no_other(shown: tuple[list[Path], str]) -> None:
    _, text = shown
    page = Page(text)
    assert page.scripts == 0
    assert len(page.ids) == len(set(page.ids)) > 10
    assert page.links
    assert all(link.startswith("data:") or link.removeprefix("#") in page.ids for link in page.links)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import|https?://", text)


def test_charts_take_the_colours_of_the_scheme(shown: tuple[list[Path], str]) -> None:
    _, text = shown
    light, dark = re.findall(r":root \{ ((?:--[\w-]+: #\w{6}; )+)\}", text)
    assert dict(re.findall(r"--([\w-]+): (#\w{6})", light)) == LIGHT
    assert dict(re.findall(r"--([\w-]+): (#\w{6})", dark)) == DARK
    assert text.index("prefers-color-scheme: dark") < text.index(dark)
    charts = re.findall(r'<svg viewBox.*?role="img".*?</svg>', text)
    assert len(charts) == 6 + 2
    for chart in charts:
        assert set(re.findall(r"var\(--([\w-]+)\)", chart)) <= set(LIGHT)
        assert not re.search(r"(fill|stroke): #", chart)
        assert "font-family" not in chart


def test_a_curve_goes_through_the_figures(tmp_path: Path) -> None:
    """The chart of the loss maps the logged (step, loss) to its pixels by one straight map an axis."""
    lines = [{"step": step, "loss": loss} for step, loss in ((10, 3.0), (20, 1.0), (35, 2.5), (40, 0.5))]
    text = pages_of(tmp_path, write_run(tmp_path / "run", "pretrain", lines))
    (path,) = re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke: var\(--series-1\)', text)
    pixels = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path)]
    assert len(pixels) == 4
    for axis, name in enumerate(("step", "loss")):
        values, drawn = [float(line[name]) for line in lines], [pixel[axis] for pixel in pixels]
        scale = (drawn[1] - drawn[0]) / (values[1] - values[0])
        assert scale * (1 if name == "step" else -1) > 0
        assert drawn == pytest.approx([drawn[0] + scale * (value - values[0]) for value in values], abs=0.02)


def test_tables(shown: tuple[list[Path], str]) -> None:
    pretraining, settings, finetuning = Page(shown[1]).tables
    rows = {row[0].strip(): [cell.strip() for cell in row] for row in pretraining}
    gap = "+4.0\N{NO-BREAK SPACE}points"
    assert rows["full"] == ["full", "50.0%", "46.0%", gap, "25.0%", "0.0500", "40", "125", "1.0%"]
    assert rows["half"][4] == "12.5%", "eight of sixteen patches are masked"
    assert settings[1:] == [["full", "keep 0.75"], ["half", "keep 0.5"]]
    assert [row[0] for row in finetuning[1:]] == ["scratch", "tuned"]
    assert finetuning[1][2:] == ["5%", "1,250", "from scratch", "50.0%", "–", "20", "0"]
    assert finetuning[2][2:] == ["5%", "1,250", "from full", "62.5%", "+12.5\N{NO-BREAK SPACE}points", "20", "0"]


def test_seeds_are_averaged(tmp_path: Path) -> None:
    full = write_pretraining(tmp_path / "full")
    accuracies = {"tuned": (0.7, 0.6, 0.8), "scratch": (0.5, 0.5, 0.65)}
    config = {"tuned": full, "scratch": None}
    runs = [
        write_finetuning(tmp_path / f"{start}-{seed}", accuracy, config[start], seed=seed, label_seed=seed)
        for start, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    runs.append(write_finetuning(tmp_path / "tuned-0-again", 0.1, full))  # a seed counts once
    _, over_seeds, _ = Page(pages_of(tmp_path, *runs)).tables
    # Deviations 0.1 and sqrt(0.0075); gains 0.2, 0.1 and 0.15.
    assert over_seeds[1:] == [
        ["resnet50", "5%", "from scratch", "3", "55.0%", "8.7%", "–"],
        ["resnet50", "5%", "from full", "3", "70.0%", "10.0%", "+15.0\N{NO-BREAK SPACE}points"],
    ]


def test_seeds_of_two_pretraining_runs_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    runs = [
        write_finetuning(tmp_path / f"{of}-{seed}", accuracy, tmp_path / of / "selfie", seed=seed, weights=of)
        for of, accuracies in {"one": (0.7, 0.6), "two": (0.3, 0.2)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    runs.append(write_finetuning(tmp_path / "scratch", 0.5, seed=1))
    _, over_seeds = Page(pages_of(tmp_path, *runs)).tables[:2]
    assert [row[3:] for row in over_seeds[1:]] == [
        ["2", "65.0%", "7.1%", "+10.0\N{NO-BREAK SPACE}points (1 of 2 runs)"],
        ["2", "25.0%", "7.1%", "−30.0\N{NO-BREAK SPACE}points (1 of 2 runs)"],
    ]


def test_a_gain_is_against_the_same_settings(tmp_path: Path) -> None:
    full = write_pretraining(tmp_path / "full")
    runs = [
        write_finetuning(tmp_path / "tuned-1", 0.75, full, seed=1),
        write_finetuning(tmp_path / "tuned-0", 0.5, full),
        write_finetuning(tmp_path / "other-lr", 0.9, full, lr=0.01),
        write_finetuning(tmp_path / "scratch-1", 0.5, seed=1, log_every=7, data="elsewhere"),
        write_finetuning(tmp_path / "scratch-0", 0.625),
    ]
    table = Page(pages_of(tmp_path, *runs)).tables[0]
    gains = [(row[0], row[6].partition("\N{NO-BREAK SPACE}")[0]) for row in table[1:]]
    assert gains[1:] == [
        ("scratch-0", "–"), ("tuned-0", "−12.5"), ("scratch-1", "–"), ("tuned-1", "+25.0"),
    ]  # fmt: skip
    assert gains[0] == ("other-lr", "–")


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "pretrain", pretraining_lines(), steps=1_200)
    page = Page(pages_of(tmp_path, run))
    assert page.tables[0][1][6] == "40 of 1,200, unfinished"


def test_an_unfinished_finetuning_run_counts_nowhere(tmp_path: Path) -> None:
    """What it has logged is shown; gains and means are of finished runs."""
    half: dict[str, Any] = {"steps": 20, "labels": "5%", "scratch": True}
    runs = [
        write_run(tmp_path / "half", "finetune", [{"step": 10, "loss": 2.0, "test_accuracy": 0.4}], **half),
        write_finetuning(tmp_path / "scratch-1", 0.5, seed=1),
        write_finetuning(tmp_path / "tuned-0", 0.75, tmp_path / "full"),
    ]
    finetuning, *others = Page(pages_of(tmp_path, *runs)).tables
    assert finetuning[1] == ["half", "resnet50", "5%", "–", "from scratch", "40.0%", "–", "10 of 20, unfinished", "0"]
    assert finetuning[2][:1] + finetuning[2][6:7] == ["tuned-0", "–"]
    assert not [table for table in others if "mean test accuracy" in table[0]]


def test_names_are_escaped(tmp_path: Path) -> None:
    runs = [write_pretraining(tmp_path / name) for name in ('<b>&"', "$x^2$", "{{ 1 }}")]
    text = pages_of(tmp_path, *runs)
    page = Page(text)
    assert [row[0] for row in page.tables[0][1:]] == ['<b>&"', "$x^2$", "{{ 1 }}"]
    assert "<b>" not in text
    assert "&" not in re.sub(r"&(amp|lt|gt|quot|#34|#39);", "", text)


def test_equal_runs_make_equal_pages(shown: tuple[list[Path], str], tmp_path: Path) -> None:
    runs, text = shown
    figures = {path: path.read_bytes() for run in runs for path in (run / "figures").iterdir()}
    assert pages_of(tmp_path, *runs) == text
    assert {path: path.read_bytes() for path in figures} == figures


def test_figures(shown: tuple[list[Path], str]) -> None:
    full, _, tuned, _ = shown[0]
    common = {"loss.png", "accuracy.png"}
    pretraining = {"context_gap.png", "learning_rate.png", "throughput.png", "data_wait.png"}
    assert {path.name for path in (full / "figures").iterdir()} == common | pretraining
    assert {path.name for path in (tuned / "figures").iterdir()} == common
    with Image.open(full / "figures" / "loss.png") as image:
        assert (image.format, image.size) == ("PNG", (960, 630))


def test_the_command(tmp_path: Path) -> None:
    write_pretraining(tmp_path / "run")
    ended = succeed("report", "run", cwd=tmp_path)
    assert ended.stderr.startswith("report.html: written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_contrast(colours: dict[str, str]) -> None:
    for back in ("card", "page"):
        for name, least in {"ink": 7, "muted": 4.5, **{colour_of(index): 4.5 for index in range(COLOURS)}}.items():
            low, high = sorted((luminance(colours[name]), luminance(colours[back])))
            assert (high + 0.05) / (low + 0.05) >= least, (name, back)


def test_runs_beyond_the_colours_have_dashes() -> None:
    looks = [(colour_of(index), dashes_of(index)) for index in range(COLOURS * len(DASHES))]
    assert all(one != other for one, other in combinations(looks, 2))
    assert not any(dashes for _, dashes in looks[:COLOURS])


def test_the_gap_has_its_interval_beside_it(tmp_path: Path) -> None:
    """Where the run measured one; a control's gap is 0 whatever is measured."""
    measured = {"held_out_accuracy": 0.5, "accuracy_shuffled": 0.46, "context_gap": 0.04}
    ends = {"context_gap_low": -0.0049, "context_gap_high": 0.0851}
    expected: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
        "new": (measured | ends, {}, "95% \u22120.5 to +8.5\u00a0points; 46.0% with another image's summary"),
        "old": (measured, {}, "46.0% with another image's summary"),
        "control": (measured | ends, {"pooler": "none"}, "by construction, with --pooler none"),
        "blind": (measured | ends, {"pooler_depth": 0}, "by construction, with --pooler-depth 0"),
    }
    for name, (figures, settings, beside) in expected.items():
        line = {"step": 10, "loss": 1.0, **figures}
        (run,) = of_kind(read_runs([write_run(tmp_path / name, "pretrain", [line], line, **settings)]), PretrainConfig)
        gap = headlines(run)[1]
        assert (gap.name, gap.beside) == ("context gap", beside)


def test_what_a_network_has_not_keeps_no_runs_apart(tmp_path: Path) -> None:
    """ResNet-50 has no position vectors, and a baseline from scratch no pretrained pooler: gains by hand."""
    pretraining = write_pretraining(tmp_path / "selfie", positions="query")
    attention: dict[str, Any] = {"encoder": "resnet36-attention"}
    runs = [
        pretraining,
        write_finetuning(tmp_path / "a", 0.5),
        write_finetuning(tmp_path / "b", 0.56, pretraining, positions="query"),
        write_finetuning(tmp_path / "c", 0.4, **attention),
        write_finetuning(tmp_path / "d", 0.43, pretraining, **attention),
        write_finetuning(tmp_path / "e", 0.41, pretraining, **attention, pooler_weights="fresh"),
        write_finetuning(tmp_path / "f", 0.49, pretraining, **attention, trunk_input="patches"),
    ]
    found = read_runs(runs)
    table = finetuning_table(of_kind(found, FinetuneConfig), of_kind(found, PretrainConfig))
    told = {row.cells[0]: (row.cells[4], row.cells[6]) for row in table.rows}
    assert told == {
        "a": ("from scratch", "–"), "b": ("from selfie", "+6.0\u00a0points"),
        "c": ("from scratch", "–"), "d": ("from selfie", "+3.0\u00a0points"),
        "e": ("from selfie, pooler fresh", "+1.0\u00a0points"),
        "f": ("from selfie", "–"),  # its baseline would see patches too
    }  # fmt: skip
