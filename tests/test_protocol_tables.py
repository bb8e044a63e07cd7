"""A protocol's tables: hand-computed cells, what is missing, and their three forms."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastselfie.protocol import paper
from fastselfie.protocol.ablations import accuracy_table, pretext_table
from fastselfie.protocol.cells import PAIRED, TEXT, Column, Grid, Line, points
from fastselfie.protocol.gains import paired
from fastselfie.protocol.measured import BASE, CONTROL, Failure, Measured, Missing, Probed, Trial
from fastselfie.protocol.page import all_tables
from fastselfie.protocol.tables import NO_PAPER, probe_table, table_1, table_2
from fastselfie.protocol.tuning_table import tuning_table
from fastselfie.protocol.wording import headlines, intervals, progress, what_was_run
from fastselfie.protocol.writers import to_csv, to_latex, to_markdown
from tests.protocol_folders import measured, pretraining, realistic, scores

HERE = Path("protocol")
SCRATCH = {0: 0.70, 1: 0.72, 2: 0.74}
PRETRAINED = {0: 0.73, 1: 0.74, 2: 0.78}


def small() -> Measured:
    """The gain of `test_protocol_gains`, and ResNet-36 + attention pooling 0.01, -0.01 and 0.03 above ResNet-50."""
    attention = {0: 0.74, 1: 0.73, 2: 0.81}
    return measured(
        HERE, *scores(HERE, SCRATCH, pretrained=False), *scores(HERE, PRETRAINED),
        *scores(HERE, attention, encoder="resnet36-attention"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Grid]:
    return all_tables(realistic(tmp_path_factory.mktemp("whole"), labels=("5%", "100%"), seeds=(0, 1, 2)))


def test_table_1() -> None:
    first, second = table_1(small()).shown()
    assert first == [
        "resnet50", "8%", "72.0 ± 2.0", "75.0 ± 2.6", "+3.0 (+0.5 to +5.5)", "gain", "3",
        "79.3 ± 1.0", "80.3 ± 0.3", "+1.0",
    ]  # fmt: skip
    assert second == ["resnet36-attention", "8%", "–", "76.0 ± 4.4", "–", "–", "0", "–", "81.3 ± 0.1", "–"]


def test_table_2() -> None:
    found = table_2(small())
    assert found is not None
    # 0.01 +- 4.3027 * 0.02 / sqrt(3)
    (row,) = found.shown()
    assert row == [
        "8%", "75.0 ± 2.6", "76.0 ± 4.4", "+1.0 (−4.0 to +6.0)", "within noise", "3",
        "80.3 ± 0.3", "81.3 ± 0.1", "+1.0",
    ]  # fmt: skip
    assert table_2(measured(HERE, *scores(HERE, PRETRAINED))) is None


def test_one_seed_and_an_unfinished_one() -> None:
    one = measured(HERE, *scores(HERE, {0: 0.5}), *scores(HERE, {0: 0.375, 1: 0.5}, pretrained=False))
    found = table_1(one)
    assert found.shown()[0][2:7] == ["43.8 ± 8.8", "50.0", "+12.5 (one seed)", "one seed", "1"]
    assert found.notes[0].startswith("1 seed is left out")
    assert not table_1(small()).notes
    both = table_2(measured(HERE, *scores(HERE, PRETRAINED), *scores(HERE, {0: 0.5}, encoder="resnet36-attention")))
    assert both is not None
    assert both.notes[0].startswith("2 seeds are left out")
    why = Failure(run="finetune/a", why="the disk is full", log="logs/finetune.a.log")
    failed = Missing(
        failure=why, stage="finetune", variant=BASE, encoder="resnet50", labels="8%", seed=0, pretrained=True
    )  # fmt: skip
    beside = replace(failed, failure=replace(why, run="finetune/b"), variant="keep-0.5", encoder="resnet36-attention")
    one = measured(
        HERE, *scores(HERE, {0: 0.5}, encoder="resnet36-attention"), missing=(failed, beside),
        encoders=("resnet50", "resnet36-attention"),
    )  # fmt: skip
    both = table_2(one)
    assert both is not None
    assert both.shown()[0][:4] == ["8%", "failed (1)", "50.0", "failed (1)"]
    assert both.notes == ("(1) finetune/a failed: the disk is full; its log is logs/finetune.a.log.",)


def test_what_failed_says_so_and_why() -> None:
    """One of three seeds from scratch, all pretrained runs of the other encoder, and a variant's pretraining."""
    own = Failure(run="finetune/a", why="the disk is full", log="logs/finetune.a.log")
    shared = Failure(run="pretrain/b", why="the loss is nan at step 3", log="logs/pretrain.b.log")
    kind: dict[str, Any] = {"stage": "finetune", "labels": "8%"}
    found = measured(
        HERE, *scores(HERE, {1: 0.72, 2: 0.74}, pretrained=False), *scores(HERE, PRETRAINED),
        *scores(HERE, PRETRAINED, variant=CONTROL), encoders=("resnet50", "resnet36-attention"), asked=15,
        variants=(BASE, CONTROL, "keep-0.5"),
        missing=(
            Missing(failure=own, variant=BASE, encoder="resnet50", pretrained=False, seed=0, **kind),
            *(Missing(failure=shared, variant=BASE, encoder="resnet36-attention", pretrained=True, seed=s, **kind)
              for s in range(3)),
            Missing(failure=shared, variant="keep-0.5", encoder="resnet50", pretrained=True, seed=0, **kind),
            *(Missing(failure=shared, variant="keep-0.5", stage=stage) for stage in ("pretrain", "probe")),
        ),
    )  # fmt: skip
    grid = table_1(found)
    first, second = grid.shown()
    assert first[2:4] == ["73.0 ± 1.4", "75.0 ± 2.6"]
    assert second[:6] == ["resnet36-attention", "8%", "–", "failed (2)", "failed (2)", "failed (2)"]
    said = (
        "(1) finetune/a failed: the disk is full; its log is logs/finetune.a.log.",
        "(2) pretrain/b failed: the loss is nan at step 3; its log is logs/pretrain.b.log.",
    )
    assert grid.notes[-2:] == said
    row = list(csv.DictReader(io.StringIO(to_csv(grid))))[1]
    assert row["verdict"] == said[1][4:-1]
    assert row["pretrained_mean"] == row["gain_low"] == "", "numbers are numbers"
    both = table_2(found)
    assert both is not None
    assert both.shown()[0][:5] == ["8%", "75.0 ± 2.6", "failed (1)", "failed (1)", "failed (1)"]
    ablated = accuracy_table(found)
    assert ablated is not None
    assert ablated.shown()[2] == ["keep-0.5: failed (2)", "resnet50", "8%", *["failed (2)"] * 3, "–"]
    assert [row[1] for row in ablated.shown()] == ["resnet50"] * 3, "nothing beside the base was to be of the other"
    base, _, kept = pretext_table(found).shown()
    assert base == ["base: unfinished", *["–"] * 4]
    assert kept == ["keep-0.5: failed (1)", *["failed (1)"] * 4]
    probes = probe_table(found)
    assert probes is not None
    assert probes.shown() == [["keep-0.5", "–", "failed (1)", "failed (1)", "–", "failed (1)", "–"]]
    assert intervals([grid, both, ablated]) == intervals([grid, ablated]), "what failed has no interval"
    (told,) = headlines(found)["resnet36-attention"]
    assert told.verdict == "no seed finished both with and without: runs failed, see table 1"
    assert progress(found) == "unfinished: 8 of 15 finetuning runs are done; 5 failed or need a run that did"


def test_data_that_the_paper_has_not() -> None:
    for changes in ({"recipe": "tiny"}, {"data": "synthetic"}, {"data": "synthetic:5000"}, {"classes": 100}):
        found = table_1(measured(HERE, *scores(HERE, PRETRAINED), **changes))
        assert [column.name for column in found.columns][-1] == "pairs"
        assert NO_PAPER in found.notes


def test_the_papers_gains_are_differences_of_its_means() -> None:
    rows = [*paper.TABLE_1.values(), *paper.TABLE_2.values()]
    assert len(rows) == 12 + 4
    for row in rows:
        assert row.second.mean - row.first.mean == pytest.approx(row.gain, abs=1e-9)


def test_the_papers_rows_by_labels_as_written() -> None:
    found = measured(HERE, *scores(HERE, PRETRAINED, labels="5.0%"), recipe="imagenet224", classes=1_000)
    theirs = paper.table_1(found, "5.0%", "resnet50")
    assert theirs is not None
    assert (theirs.first.mean, theirs.second.mean, theirs.gain) == (0.356, 0.467, 0.111)
    assert paper.table_1(found, "2%", "resnet50") is None
    assert paper.accuracy(found, "10%", "resnet50", True) != paper.accuracy(found, "10%", "resnet36-attention", True)


def ablated(*variants: str) -> Measured:
    """The base 0.75, each variant 0.02 below it by seed but for 0.001 at the last."""
    lower = {0: 0.71, 1: 0.72, 2: 0.759}
    runs = (score for variant in variants for score in scores(HERE, lower, variant=variant))
    base = (*scores(HERE, SCRATCH, pretrained=False), *scores(HERE, PRETRAINED))
    pretrainings = (pretraining(HERE), *(pretraining(HERE, variant, 0.6, 0.0) for variant in variants))
    return measured(HERE, *base, *runs, pretrainings=pretrainings)


def test_the_base_is_not_compared_with_itself() -> None:
    """A variant that asks for what the base has has its runs, and does not count among Holm's comparisons."""
    found = ablated(CONTROL)
    shared = [
        replace(score, variant="keep-0.75") for score in found.scores if score.variant == BASE and score.pretrained
    ]
    table = accuracy_table(replace(found, scores=(*found.scores, *shared), variants=(*found.variants, "keep-0.75")))
    assert table is not None
    base, control, kept = table.shown()
    assert kept == ["keep-0.75: the base itself", *base[1:5], "–", "–"]
    assert control[5:] == ["−2.0 (−2.2 to −1.9)", "< 0.001"]
    assert table.lines[1].cells[-1] == pytest.approx(1 - 61 / 3723**0.5), "multiplied by 1"


def test_ablations_beside_the_control() -> None:
    found = ablated(CONTROL, "depth-1")
    pretext, after = pretext_table(found), accuracy_table(found)
    assert after is not None
    assert pretext.shown() == [
        ["base", "20,000", "70.0", "55.0", "+15.0 (+14.0 to +17.0)"],
        ["control (pooler none)", "20,000", "60.0", "60.0", "0.0 (0.0 to 0.0)"],
        ["depth-1", "20,000", "60.0", "60.0", "0.0 (0.0 to 0.0)"],
    ]
    # Differences -0.02, -0.02, -0.021: mean -0.0203, deviation 0.00057735, t = 61, so p = 1 - 61 / sqrt(3723).
    base, control, depth = after.shown()
    assert base[3:] == ["75.0 ± 2.6", "+3.0 (+0.5 to +5.5)", "–", "–"]
    assert control[:4] == ["control (pooler none)", "resnet50", "8%", "73.0 ± 2.6"]
    assert control[5:] == depth[5:] == ["−2.0 (−2.2 to −1.9)", "< 0.001"]
    p = 1 - 61 / 3723**0.5
    assert [line.cells[-1] for line in after.lines] == [None, pytest.approx(2 * p), pytest.approx(2 * p)]
    assert "the 2 differences" in after.notes[0]
    assert len(after.notes) == 1
    assert not any("missing" in note for note in pretext.notes)
    more = accuracy_table(replace(found, variants=(*found.variants, "keep-0.5", "pooler-max")))
    assert more is not None
    assert more.notes[1:] == ("No finished run yet: keep-0.5, pooler-max.",)


def test_one_seed_has_no_p() -> None:
    found = accuracy_table(measured(HERE, *scores(HERE, {0: 0.5}), *scores(HERE, {0: 0.25}, variant=CONTROL)))
    assert found is not None
    assert [row[-1] for row in found.shown()] == ["–", "–"]
    assert found.notes == ()


def test_a_missing_control_is_said_to_be_missing() -> None:
    for found, word in ((ablated("depth-1"), "not run"), (ablated(), "not run")):
        rows = pretext_table(found).shown()
        assert rows[1] == [f"control (pooler none): {word}", "–", "–", "–", "–"]
        assert any("control, pooler none, is missing" in note for note in pretext_table(found).notes)
    after = accuracy_table(ablated("depth-1"))
    assert after is not None
    assert [row[0] for row in after.shown()] == ["base", "control (pooler none): not run", "depth-1"]
    assert any("control, pooler none, is missing" in note for note in after.notes)
    assert accuracy_table(ablated()) is None
    asked = measured(HERE, *scores(HERE, PRETRAINED), variants=(BASE, CONTROL))
    assert pretext_table(asked).shown()[1][0] == "control (pooler none): unfinished"


def test_probes_beside_an_untrained_network() -> None:
    probes = (
        Probed(variant=BASE, step=10, features="u", linear=0.5, knn=0.4),
        Probed(variant=BASE, step=20, features="u", linear=0.625, knn=None),
        Probed(variant=BASE, step=0, features="u", linear=0.25, knn=0.125, trained=False),
    )
    found = probe_table(measured(HERE, probes=probes))
    assert found is not None
    assert found.shown() == [["base", "20", "u", "62.5", "25.0", "–", "12.5"]]
    without = probe_table(measured(HERE, probes=probes[:2]))
    assert without is not None
    assert without.shown()[0][4] == "–"
    assert len(without.notes) == 1
    assert probe_table(measured(HERE)) is None


def test_an_untrained_network_stands_beside_the_variant_of_its_shape() -> None:
    probe = Probed(variant=BASE, step=20, features="u", linear=0.75, knn=None)
    mean = replace(probe, variant="pooler-mean", linear=0.5)
    probes = probe, replace(probe, linear=0.25, trained=False), mean, replace(mean, linear=0.125, trained=False)
    found = probe_table(measured(HERE, probes=probes))
    assert found is not None
    assert [row[3:5] for row in found.shown()] == [["75.0", "25.0"], ["50.0", "12.5"]]


def test_several_pretraining_runs_of_a_variant_are_told_apart() -> None:
    """As --tune leaves them, where one kind of finetuning chose another share to see than the other."""
    one = replace(pretraining(HERE), run=HERE / "pretrain" / "keep=0.5")
    found = measured(HERE, pretrainings=(one, replace(one, run=HERE / "pretrain" / "base")))
    assert [row[0] for row in pretext_table(found).shown()[:2]] == ["base: keep=0.5", "base: base"]
    assert ("pretraining", "20,000 steps (base)") in what_was_run(found)


def test_tuning() -> None:
    trial = Trial(
        task="a", settings={"lr": 0.4}, validation_accuracy=0.25, state="complete", step=9, chosen=False
    )  # fmt: skip
    trials = (
        replace(trial, settings={"lr": 0.1, "keep": 0.75}, validation_accuracy=0.5, chosen=True),
        replace(trial, validation_accuracy=None, state="pruned", step=3),
        replace(trial, task="b"),
    )
    found = tuning_table(measured(HERE, trials=trials))
    assert found is not None
    assert found.shown() == [
        ["a", "lr 0.1, keep 0.75", "50.0", "9", "chosen"],
        ["a", "lr 0.4", "–", "3", "stopped early"],
        ["b", "lr 0.4", "25.0", "9", "complete"],
    ]
    assert [line.first for line in found.lines] == [False, False, True]
    assert found.notes == ("The chosen rate is an end of those tried, a better one may lie beyond: a.",)
    between = (*trials, replace(trial, settings={"lr": 0.05}))
    inside = tuning_table(measured(HERE, trials=between))
    assert inside is not None
    assert inside.notes == ()


@pytest.mark.parametrize(
    ("difference", "text"),
    [(0.01, "+1.0"), (-0.123, "−12.3"), (0.0, "0.0"), (-0.0001, "−0.01"), (0.00001, "+0.001"), (1e-9, "0.0")],
)
def test_a_small_difference_keeps_its_sign(difference: float, text: str) -> None:
    assert points(difference) == text


def test_csv_files_hold_the_numbers_themselves() -> None:
    row, other = csv.DictReader(io.StringIO(to_csv(table_1(small()))))
    gained = paired(PRETRAINED, SCRATCH)
    assert gained is not None
    names = ("mean", "sd", "n", "low", "high", "p", "unpaired")
    assert [float(row[f"gain_{name}"]) for name in names] == [getattr(gained, name) for name in names]
    assert (row["labels"], row["verdict"], row["paper_gain"]) == ("8%", "gain", "0.01")
    assert float(row["supervised_mean"]) == pytest.approx(0.72)
    assert other["gain_mean"] == other["supervised_mean"] == ""


def test_every_table_has_equal_rows_in_every_form(whole: list[Grid]) -> None:
    assert [grid.name for grid in whole] == [
        "table1", "table2", "ablation-pretraining", "ablation-finetuning", "probes", "tuning",
    ]  # fmt: skip
    for grid in whole:
        rows = len(grid.lines)
        header, *raw = csv.reader(io.StringIO(to_csv(grid)))
        assert {len(row) for row in raw} == {len(header)} == {len(set(header))}
        lines = [line for line in to_markdown(grid).splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(grid.columns) + 1}
        latex = [line for line in to_latex(grid).splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in latex} == {len(grid.columns) - 1}
        assert len(raw) == len(lines) - 2 == len(latex) - 1 == rows


HOSTILE = "[a]_b|c & 5% #1 $x^2$ {y} \\z ~ <b> --to"


def hostile() -> Grid:
    columns = (Column(name="a", heading="50% & more", kind=TEXT), Column(name="gain", heading="gain", kind=PAIRED))
    return Grid(name="t", caption="A_b", columns=columns, lines=(Line(cells=(HOSTILE, None)),), notes=("5% of it.",))


def test_latex_escapes() -> None:
    text = to_latex(hostile())
    assert (
        r"{[}a{]}\_b\textbar{}c \& 5\% \#1 \$x\textasciicircum{}2\$ \{y\} \textbackslash{}z \textasciitilde{}"
        r" \textless{}b\textgreater{} -{}-to & -- \\"
    ) in text
    assert r"\caption{A\_b 5\% of it.}" in text
    assert r"50\% \& more & gain \\" in text
    # What is left of a body without escapes and commands holds none of LaTeX's characters but the column's mark.
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert set(re.sub(r"\\[a-z]+(\{\})?|\\[\\{}$&#%_]", "", body)) & set("$#%_^~\\") == set()
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


def test_markdown_escapes() -> None:
    row = to_markdown(hostile()).splitlines()[4]
    assert row == r"| \[a\]\_b\|c &amp; 5% \#1 \$x^2\$ {y} \\z \~ \<b\> --to | – |"
