"""A protocol's page and figures: whole, safe, self-contained, and with the values that were measured."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as Canvas
from PIL import Image

from fastselfie.errors import UserError
from fastselfie.protocol import figure3, figure4, probe_figure, wording
from fastselfie.protocol.measured import Measured
from fastselfie.protocol.page import all_tables, write_report
from fastselfie.protocol.panels import Panel, slug
from fastselfie.report.palette import LIGHT
from tests.protocol_folders import measured, pretraining, realistic, scores, write_log
from tests.test_report_page import Page

LABELS, SEEDS = ("5%", "100%"), (0, 1, 2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, str]:
    """A protocol with everything, and its page."""
    folder = tmp_path_factory.mktemp("written")
    found = realistic(folder / "protocol", LABELS, SEEDS)
    return found, page_of(found, folder / "report.html")


def page_of(found: Measured, out: Path) -> str:
    write_report(found, out)
    return out.read_text()


def drawn(panel: Panel) -> Axes:
    axes = Canvas().add_subplot()
    panel.draw(axes, LIGHT)
    return axes


def errorbars(axes: Axes) -> list[ErrorbarContainer]:
    return [found for found in axes.containers if isinstance(found, ErrorbarContainer)]


def test_the_page_is_whole_and_needs_no_other(written: tuple[Measured, str]) -> None:
    page = Page(written[1])
    assert page.scripts == 0
    assert len(page.ids) == len(set(page.ids)) > 10
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert set(re.findall(r"url\(#([^)]*)\)", written[1])) <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import|https?://|<a |src=", written[1])
    assert set(re.findall(r'aria-labelledby="([^"]*)"', written[1])) <= set(page.ids)


def test_every_table_and_figure_is_on_the_page(written: tuple[Measured, str]) -> None:
    found, text = written
    expected = [[[column.heading for column in grid.columns], *grid.shown()] for grid in all_tables(found)]
    assert Page(text).tables == expected
    charts = re.findall(r'<svg viewBox.*?role="img".*?</svg>', text)
    assert len(charts) == 2 * 2 * 3 + 2 * 2 + 2, (
        "figure 3 for each encoder and labels, figure 4 for each encoder, probes"
    )
    for chart in charts:
        assert set(re.findall(r"var\(--([\w-]+)\)", chart)) <= set(LIGHT)
        assert not re.search(r"(fill|stroke): #", chart)


def test_the_files_in_the_protocols_folder(written: tuple[Measured, str]) -> None:
    folder = written[0].folder
    tables = {path.name for path in (folder / "tables").iterdir()}
    assert tables == {f"{grid.name}.{form}" for grid in all_tables(written[0]) for form in ("md", "csv", "tex")}
    figures = {path.name for path in (folder / "figures").iterdir()}
    encoders = ("resnet50", "resnet36-attention")
    assert figures == {
        *(f"figure3-{encoder}-{labels}.png" for encoder in encoders for labels in ("5pct", "100pct")),
        *(f"figure4-{encoder}.png" for encoder in encoders), "probes.png",
    }  # fmt: skip
    for name, panels in (("figure3-resnet50-5pct.png", 3), ("figure4-resnet50.png", 2), ("probes.png", 2)):
        with Image.open(folder / "figures" / name) as image:
            assert (image.format, image.size) == ("PNG", (960 * panels, 630))


def test_what_was_run_and_how_far(written: tuple[Measured, str]) -> None:
    found, text = written
    assert f"unfinished: {len(found.scores)} of {found.asked} finetuning runs are done" in text
    assert "start from one pretraining run: the intervals do not cover" in text
    for words in ("2,000 steps of 128 images", "20,000 steps (base, control", "10 classes, chance 10.0%"):
        assert words in text
    # Table 1 and 2 have 4 and 2 rows, the variants' gaps 6, their gains 6, their differences from the base 5.
    assert "The tables show 23 intervals." in text
    done = dataclasses.replace(found, asked=len(found.scores))
    assert wording.progress(done) == f"all {len(found.scores)} finetuning runs are done"
    more = dataclasses.replace(found, pretrainings=(*found.pretrainings, pretraining(found.folder)))
    assert "Several pretraining runs" in wording.scope(more)
    assert "over one labelled subset" in wording.scope(more)
    assert "crops, and the labelled subset." in wording.scope(dataclasses.replace(more, vary_labels=True))


def test_headlines_in_plain_words(tmp_path: Path) -> None:
    runs = (
        *scores(tmp_path, {0: 0.70, 1: 0.72, 2: 0.74}, pretrained=False),
        *scores(tmp_path, {0: 0.73, 1: 0.74, 2: 0.78}),
        *scores(tmp_path, {0: 0.5, 1: 0.5}, labels="5%"),
        *scores(tmp_path, {0: 0.25, 1: 0.75}, labels="5%", pretrained=False),
        *scores(tmp_path, {0: 0.5}, labels="2%"),
        *scores(tmp_path, {0: 0.625}, labels="2%", pretrained=False),
        *scores(tmp_path, {0: 0.5}, labels="20%"),
    )
    (told,) = wording.headlines(measured(tmp_path, *runs)).values()
    assert [(each.labels, each.value, each.verdict) for each in told] == [
        ("8%", "+3.0", "a gain beyond noise"), ("5%", "0.0", "within noise"),
        ("2%", "−12.5", "one seed, so no interval"), ("20%", "–", "no seed finished both with and without"),
    ]  # fmt: skip
    assert told[0].beside == ("+0.5 to +5.5, 3 seeds", "paper: +1.0")
    assert told[2].beside == ()


def test_figure_3_is_mean_and_range_over_seeds(tmp_path: Path) -> None:
    runs = scores(tmp_path, {0: 0.5, 1: 0.7})
    write_log(
        runs[0], [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0, "test_accuracy": 0.5}, {"step": 30, "loss": 9.0}]
    )
    write_log(runs[1], [{"step": 10, "loss": 4.0}, {"step": 20, "loss": 2.0, "test_accuracy": 0.7}])
    (figure,) = figure3.figures(measured(tmp_path, *runs))
    assert [panel.title for panel in figure.panels] == ["Training loss", "Test accuracy"], "no run has a test loss"
    axes = drawn(figure.panels[0])
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[10, 3], [20, 1.5]]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).tolist()}
    assert corners == {(10, 2), (10, 4), (20, 1), (20, 2)}
    assert "pretrained 0.6 (0.5 to 0.7, 2 seeds)" in figure.panels[1].description


def test_figure_4_has_our_points_and_the_papers(tmp_path: Path) -> None:
    runs = [
        score
        for labels, level in (("8%", 0.75), ("2%", 0.5))
        for score in (
            *scores(tmp_path, {0: level - 0.01, 1: level + 0.01}, labels=labels),
            *scores(tmp_path, {0: level - 0.125, 1: level - 0.125}, labels=labels, pretrained=False),
        )
    ]
    (figure,) = figure4.figures(measured(tmp_path, *runs))
    accuracy, gained = (drawn(panel) for panel in figure.panels)
    points = {bars.get_label(): np.asarray(bars.lines[0].get_xydata()).tolist() for bars in errorbars(accuracy)}
    assert points["pretrained"] == [[0.02, 0.5], [0.08, 0.75]]
    assert points["supervised"] == [[0.02, 0.375], [0.08, 0.625]]
    assert [y for _, y in points["paper, pretrained"]] == [0.803], "its 2% is only drawn"
    assert [y for _, y in points["paper, supervised"]] == [0.793]
    assert (accuracy.get_xscale(), [text.get_text() for text in accuracy.get_xticklabels()]) == ("log", ["8%", "2%"])
    # Differences 0.115 and 0.135: 0.125 +- 12.7062 * 0.01, with one degree of freedom.
    (bars,) = errorbars(gained)[0].lines[2]
    ends = sorted(y for segment in bars.get_segments() for _, y in segment)
    assert ends == pytest.approx([0.125 - 0.127062] * 2 + [0.125 + 0.127062] * 2, abs=1e-6)
    assert any(not np.asarray(line.get_ydata()).any() for line in gained.lines), "the zero line"


def test_probes_need_several_steps_to_be_drawn(written: tuple[Measured, str]) -> None:
    found = written[0]
    last = tuple(probed for probed in found.probes if probed.step == 20_000)
    assert probe_figure.figure(dataclasses.replace(found, probes=last)) is None
    figure = probe_figure.figure(found)
    assert figure is not None
    knn = drawn(figure.panels[0])
    curves = {str(line.get_label()): np.asarray(line.get_ydata()) for line in knn.lines}
    levels = [values[0] for values in curves.values() if len(values) == 2]
    assert [name for name, values in curves.items() if len(values) == 6] == [
        "trunk, whole image",
        "trunk, per patch",
        "u",
    ]
    assert curves["u"][0] == pytest.approx(0.33)
    assert levels == pytest.approx([0.37, 0.40, 0.33]), "those of the untrained network"


def test_a_protocol_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    begun = measured(tmp_path, asked=4, labels=("8%",), encoders=("resnet50",), seeds=(0, 1), variants=("base",))
    page = Page(page_of(begun, tmp_path / "report.html"))
    assert [len(table) for table in page.tables] == [2, 3]
    assert wording.intervals(all_tables(begun)).startswith("The tables show no interval")


def test_names_are_escaped(tmp_path: Path) -> None:
    name = '<b>&"{{ 1 }}'
    runs = (*scores(tmp_path, {0: 0.5, 1: 0.6}), *scores(tmp_path, {0: 0.5, 1: 0.6}, variant=name))
    found = measured(tmp_path, *runs, data=name, settings=((name, name),), pretrainings=(pretraining(tmp_path, name),))
    text = page_of(found, tmp_path / "report.html")
    cells = [cell for table in Page(text).tables for row in table for cell in row]
    assert cells.count(name) == 2
    assert "<b>" not in text
    assert "&" not in re.sub(r"&(amp|lt|gt|quot|#34|#39);", "", text)
    assert slug("../8.5%/x") == "8-5pct-x"


def test_equal_measurements_make_equal_files(written: tuple[Measured, str]) -> None:
    found, text = written
    files = {path: path.read_bytes() for path in found.folder.glob("tables/*")} | {
        path: path.read_bytes() for path in found.folder.glob("figures/probes.png")
    }
    write_report(dataclasses.replace(found, scores=found.scores[::-1]), found.folder / "again.html")
    assert {path: path.read_bytes() for path in files} == files
    assert page_of(found, found.folder / "again.html") == text


def test_damage_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    runs = scores(tmp_path / "runs", {0: 0.5})
    write_log(runs[0], [{"step": 1, "test_loss": float("nan")}])
    with pytest.raises(UserError, match=r"metrics.jsonl: line 1 is damaged .*test_loss"):
        write_report(measured(tmp_path / "protocol", *runs), tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("a file where the folder belongs")
    with pytest.raises(UserError, match=r"tables/table1.md: cannot be written \(File exists\); "):
        write_report(measured(tmp_path, *scores(tmp_path, {0: 0.5})), tmp_path / "report.html")
