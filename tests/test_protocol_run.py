"""The whole command on a small scale: stopped and gone on with, asked for more, refused, and read again."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from fastselfie.errors import UserError
from fastselfie.protocol.measured import Failure
from fastselfie.protocol.plan import Planner
from fastselfie.protocol.protocol import protocol
from fastselfie.protocol.record import read_protocol
from fastselfie.protocol.tune import Tuning
from fastselfie.protocol.wording import progress
from fastselfie.protocol_arguments import parse_protocol
from tests.command import SMALL, assert_refused, contents, end, fastselfie, in_process, start, succeed

WORDS = (
    *("protocol", *SMALL, "--steps", "4", "--labels", "50%", "--encoders", "resnet50", "--probes", "0", "--out", "out"),
    *("--log-every", "2", "--evaluate-every", "2", "--held-out", "16"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, unbroken."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(*WORDS, "--seeds", "2", cwd=folder)
    return folder / "out"


def accuracies(folder: Path) -> dict[tuple[bool, int], float]:
    return {(score.pretrained, score.seed): score.accuracy for score in read_protocol(folder).scores}


def test_every_run_is_there_and_is_what_was_asked(whole: Path) -> None:
    measured = read_protocol(whole)
    assert (measured.asked, len(measured.scores), measured.classes) == (4, 4, 10)
    assert {(score.pretrained, score.seed) for score in measured.scores} == {
        (p, s) for p in (True, False) for s in (0, 1)
    }
    for score in measured.scores:
        result = json.loads((score.run / "result.json").read_text())
        assert (result["test_accuracy"], result["seed"]) == (score.accuracy, score.seed)
        assert (result["pretrained"], result["labels"]) == (score.pretrained, "50%")
    (pretraining,) = measured.pretrainings
    assert pretraining.steps == 4
    assert pretraining.context_gap is not None
    first, second = (folder / "labelled.txt" for folder in sorted((whole / "finetune" / "base").glob("*-scratch-*")))
    assert first.read_text() == second.read_text()


def test_stopped_and_gone_on_with_it_comes_to_the_same(whole: Path, tmp_path: Path) -> None:
    """One seed, which stands in the unbroken protocol too."""
    process = start(*WORDS, "--seeds", "1", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/**/result.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    ended = end(process)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert "the same command goes on" in ended.stderr
    begun = {path: path.read_bytes() for path in tmp_path.glob("out/**/result.json")}
    assert 1 <= len(begun) < 3
    succeed(*WORDS, "--seeds", "1", cwd=tmp_path)
    assert accuracies(tmp_path / "out") == {key: found for key, found in accuracies(whole).items() if key[1] == 0}
    assert len(accuracies(tmp_path / "out")) == 2
    assert {path: path.read_bytes() for path in begun} == begun, "what was done is not done again"


def test_done_already_and_asked_for_less(whole: Path) -> None:
    def runs() -> dict[str, bytes | None]:
        kept = contents(whole)
        return {name: kept[name] for name in kept if name.startswith(("finetune", "pretrain", "logs"))}

    before = runs()
    succeed(*WORDS, "--seeds", "1", cwd=whole.parent)
    assert runs() == before
    assert read_protocol(whole).asked == 2
    succeed(*WORDS, "--seeds", "2", cwd=whole.parent)
    assert runs() == before
    assert read_protocol(whole).asked == 4


def test_machines_and_versions_are_those_of_the_runs(whole: Path, tmp_path: Path) -> None:
    """The protocol's own are of where it was begun."""
    folder = Path(shutil.copytree(whole, tmp_path / "out"))
    cores = f"{os.cpu_count()} CPU cores"
    assert ("made on", cores) in read_protocol(folder).settings
    starts = next(folder.glob("finetune/base/*/starts.jsonl"))
    line = json.loads(starts.read_text())
    elsewhere = line | {"step": 2, "made_by": line["made_by"] | {"gpu": "NVIDIA H200", "torch": "9.9"}}
    with starts.open("a") as file:
        file.write(json.dumps(elsewhere) + "\n")
    settings = dict(read_protocol(folder).settings)
    assert settings["made on"] == f"{cores} and NVIDIA H200"
    assert re.fullmatch(
        rf"FastSelfie (.+), PyTorch {re.escape(torch.__version__)} and FastSelfie \1, PyTorch 9.9", settings["versions"]
    )
    for path in folder.glob("**/starts.jsonl"):
        path.unlink()
    assert ("made on", cores) in read_protocol(folder).settings, "of an earlier version"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pretrain.lr", "0.3"), "--out out: holds a protocol with --pretrain.lr 0.1, not 0.3"),
        (("--finetune.steps", "5"), "--out out: holds a protocol with --finetune.steps 4, not 5"),
        (("--tune",), "--out out: holds a protocol with --no-tune, not --tune"),
        (("--labels", "1%"), "--labels 1%: makes 10 images to train on, fewer than --finetune.batch-size 16"),
    ],
)
def test_other_settings_are_refused_and_nothing_changes(words: tuple[str, ...], said: str, whole: Path) -> None:
    before = contents(whole)
    assert said in assert_refused(in_process(*WORDS, *words, cwd=whole.parent))
    assert contents(whole) == before


def test_runs_of_other_images_or_weights_do_not_come_into_one_table(whole: Path, tmp_path: Path) -> None:
    """Also where the runs that are there are done, and would not be looked at again."""
    before = contents(whole)
    line = assert_refused(in_process(*WORDS, "--data", "synthetic:300", "--seeds", "3", cwd=whole.parent))
    assert "--out out: its runs had another --data" in line
    assert contents(whole) == before
    record = json.loads((whole / "protocol.json").read_text())
    record["facts"]["pretrained"] = "0123"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "protocol.json").write_text(json.dumps(record))
    line = assert_refused(in_process(*WORDS, "--seeds", "3", cwd=tmp_path))
    assert "--out out: its runs had another --from (checksum 0123, now None)" in line
    unfinished = shutil.copytree(whole / "pretrain" / "base", tmp_path / "run")
    (unfinished / "encoder.safetensors").unlink()
    words = WORDS[: WORDS.index("--held-out")]
    line = assert_refused(in_process(*words, "--from", "run", "--out", "new", cwd=tmp_path))
    assert "--from run: is not finished" in line
    assert not (tmp_path / "new").exists()


def test_a_run_that_fails_costs_its_own_cells_and_is_tried_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    in_the_way = tmp_path / "out" / "pretrain" / "keep=0.5" / "thing"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    words = (*WORDS, "--seeds", "1", "--variants", "keep-0.5")
    ended = fastselfie(*words, cwd=tmp_path)
    assert ended.returncode == 2
    why = "--out out/pretrain/keep=0.5: is not an empty folder and holds no run; choose another"
    log = "logs/pretrain.keep=0.5.log"
    assert ended.stderr.splitlines()[-1] == (
        f"fastselfie: out: 1 run failed, and what does not need them is done; the first is pretrain/keep=0.5: {why};"
        f" its log is out/{log}; report.html says what is missing, and the same command tries again"
    )
    assert why in (tmp_path / "out" / log).read_text()
    measured = read_protocol(tmp_path / "out")
    assert {(score.variant, score.pretrained) for score in measured.scores} == {
        ("base", True), ("base", False), ("control", True)
    }  # fmt: skip
    assert {(each.stage, each.variant, each.seed) for each in measured.missing} == {
        ("pretrain", "keep-0.5", None), ("finetune", "keep-0.5", 0)
    }  # fmt: skip
    note = f"(1) pretrain/keep=0.5 failed: {why}; its log is {log}."
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(note) == 2, "below pretraining's table and finetuning's"
    rows = list(csv.DictReader((tmp_path / "out" / "tables" / "ablation-finetuning.csv").open()))
    assert [row["variant"] for row in rows] == ["base", "control (pooler none)", "keep-0.5: failed (1)"]
    assert not (tmp_path / "out" / "finetune" / "keep-0.5").exists()
    in_the_way.unlink()
    succeed(*words, cwd=tmp_path)
    measured = read_protocol(tmp_path / "out")
    assert "keep-0.5" in {score.variant for score in measured.scores}
    assert not measured.missing
    assert "failed" not in (tmp_path / "out" / "tables" / "ablation-finetuning.md").read_text()


def test_one_protocol_at_a_time_works_in_a_folder(whole: Path) -> None:
    before = contents(whole)
    with (whole / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = assert_refused(in_process(*WORDS, "--seeds", "3", cwd=whole.parent))
    assert "--out out: another fastselfie protocol works in it" in line
    assert contents(whole) == before


def test_a_protocol_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun one would work, and be ended when the others are refused its folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without torchrun"):
        protocol(parse_protocol(WORDS[1:]))


def test_a_page_of_a_protocol_that_has_just_begun_says_so(whole: Path, tmp_path: Path) -> None:
    """While settings are chosen no run is named yet."""
    record = json.loads((whole / "protocol.json").read_text())
    assert record["asked"] == len(record["runs"]) == 4
    (tmp_path / "protocol.json").write_text(json.dumps(record | {"runs": [], "pretrainings": []}))
    assert progress(read_protocol(tmp_path)) == "unfinished: 0 of 4 finetuning runs are done"


def test_what_cannot_be_evaluated_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    words = ("protocol", "tiny", "--device", "cpu", "--data", "flat", "--out", "out")
    assert_refused(in_process(*words, cwd=tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thing").touch()
    line = assert_refused(in_process(*WORDS, cwd=tmp_path))
    assert "--out out: is not an empty folder and holds no protocol" in line
    assert {path.name for path in tmp_path.iterdir()} <= {"flat", "out", ".index"}


def test_a_rate_that_is_too_high_costs_a_trial_and_no_more(tmp_path: Path) -> None:
    """What a run says when its loss is no number any more is what `Tuning.diverged` looks for."""
    words = ("--scratch", "--encoder", "resnet36-attention", "--labels", "50%", "--lr", "900", "--hold-back", "0.1")
    ended = in_process("finetune", *SMALL, *words, "--steps", "20", "--log-every", "1", "--out", "run", cwd=tmp_path)
    assert ended.returncode == 2
    said = ended.stderr.splitlines()[-1]
    asked = parse_protocol([*SMALL, "--tune", "--labels", "50%", "--out", str(tmp_path / "out")])
    tuning = Tuning(asked, Planner(asked, tmp_path / "out"))
    kind, points = next(iter(tuning.trials.items()))
    first, *others = points.values()
    why = tuning.diverged(first, said)
    assert why is not None
    assert 1 <= why["step"] <= 20
    assert tuning.diverged(first, "the disk is full") is None
    pretraining = tuning.tasks()[0]
    assert pretraining.words[0] == "pretrain"
    assert tuning.diverged(pretraining, said) is None, "nothing can be chosen without it"
    failure = Failure(run=others[0].name, why="the disk is full", log="logs/x.log")
    (told,) = tuning.told({failure.run: failure})
    assert (told.state, told.settings["lr"], told.why) == ("failed", 0.02, "the disk is full; its log is logs/x.log")
    first.folder.mkdir(parents=True)
    (first.folder / "pruned.json").write_text(json.dumps(why))
    for other in others:
        other.folder.mkdir(parents=True)
        (other.folder / "result.json").write_text('{"validation_accuracy": 0.2}')
    trials = {trial.settings["lr"]: trial for trial in tuning.told()}
    assert (trials[0.01].state, trials[0.01].validation_accuracy, trials[0.01].step) == ("diverged", None, why["step"])
    assert tuning.chosen(kind).lr == 0.02
    assert not tuning.without_choice()
    for other in others:
        (other.folder / "result.json").rename(other.folder / "pruned.json")
        (other.folder / "pruned.json").write_text(json.dumps(why))
    assert not tuning.decided(kind), "of trials that have all diverged there is none to choose"
    assert [one.name for one in tuning.without_choice()] == [kind.name]
