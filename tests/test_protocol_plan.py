"""Which runs answer what is asked, the words they are started with, and what is refused before any starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fastselfie.arguments import parse_finetune, parse_pretrain
from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.errors import UserError
from fastselfie.protocol.command import words_of
from fastselfie.protocol.plan import Kind, Planner, Point
from fastselfie.protocol.probing import told
from fastselfie.protocol.task import RunTask
from fastselfie.protocol.tune import Tuning, grid
from fastselfie.protocol.variants import VARIANTS, variant_names
from fastselfie.protocol_arguments import parse_protocol
from fastselfie.recipes import RECIPES, recipe
from fastselfie.training.run_folder import RunFolder


def planner(words: str, folder: Path = Path("out")) -> Planner:
    return Planner(parse_protocol(words.split()), folder)


def settings(task: RunTask) -> PretrainConfig | FinetuneConfig:
    """What the run will read from its command line."""
    command, *words = task.words
    return parse_pretrain(words) if command == "pretrain" else parse_finetune(words)


@pytest.mark.parametrize("name", RECIPES)
def test_words_say_a_configuration(name: str) -> None:
    start = recipe(name)
    changes: dict[str, Any] = {
        "width": 0.5, "lr": 0.4, "mean": (0.1, 0.2, 0.3), "deterministic": True, "out": Path("a b"), "seed": 7,
        "compile": "off", "index": Path("here"), "loader_threads": 3,
    }  # fmt: skip
    pretraining = dataclasses.replace(start.pretrain, **changes, keep=0.5, pooler="none")
    words = words_of(pretraining, start.pretrain)
    assert parse_pretrain([name, *words]) == pretraining
    finetuning = dataclasses.replace(start.finetune, **changes, scratch=True, labels="8%", hold_back=0.1)
    assert parse_finetune([name, *words_of(finetuning, start.finetune)]) == finetuning
    assert words_of(start.pretrain, start.pretrain) == []


def test_options_without_a_prefix_go_to_every_stage_that_has_them() -> None:
    words = "cifar10 --width 0.5 --finetune.lr 0.3 --keep 0.5 --steps=70 --pretrain.steps 90 --mean 0.1 0.2 0.3"
    asked = parse_protocol([*words.split(), "--deterministic", "--data", "d", "--seeds", "2"])
    assert (asked.pretrain.width, asked.finetune.width) == (0.5, 0.5)
    assert (asked.pretrain.lr, asked.finetune.lr) == (recipe("cifar10").pretrain.lr, 0.3)
    assert asked.pretrain.keep == 0.5
    assert (asked.pretrain.steps, asked.finetune.steps) == (90, 70)
    assert asked.pretrain.mean == asked.finetune.mean == (0.1, 0.2, 0.3)
    assert asked.pretrain.deterministic
    assert asked.finetune.deterministic
    assert (asked.protocol.data, asked.protocol.seeds) == ("d", 2)


@pytest.mark.parametrize(
    "words",
    [
        "--tune --lr 0.3", "--from run --steps 9", "--tune --keeps 0.5 --pretrain-learning-rates 0.1", "--lr 0.3",
        "--probes 2 --checkpoint-every 9 --keep-checkpoints 9", "--probes 1 --pretrain.checkpoint-every 9",
    ],
)  # fmt: skip
def test_what_is_said_to_both_stages_need_not_have_an_effect_on_both(words: str) -> None:
    parse_protocol(["cifar10", *words.split()])


def test_what_is_pretrainings_alone_goes_there_alone() -> None:
    """The seeds and poolers of finetuning are the protocol's business."""
    asked = parse_protocol(["cifar10", "--seed", "3", "--pooler", "mean", "--batch_size", "8"])
    assert (asked.pretrain.seed, asked.finetune.seed) == (3, 0)
    assert (asked.pretrain.batch_size, asked.finetune.batch_size) == (8, 8)
    plan = Planner(asked, Path("out"))
    config = settings(plan.finetuning(Kind(encoder="resnet36-attention", labels="5%", start="scratch"), 4))
    assert isinstance(config, FinetuneConfig)
    assert (config.seed, config.pooler) == (4, "mean")


def tasks(words: str) -> list[RunTask]:
    plan = planner(f"cifar10 --data d {words}")
    plan.check_said()
    return [plan.finetuning(kind, 0) for kind in plan.kinds()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--finetune.width 0.5", "--finetune.width 0.5: pretraining has 1.0, and finetuning takes it over"),
        ("--pretrain.width 0.25 --finetune.width 0.5", "--finetune.width 0.5: pretraining has 0.25"),
        ("--finetune.positions query", "--finetune.positions query: pretraining has both"),
        ("--pooler none", "--encoders resnet50,resnet36-attention: pretraining has no pooler that an image could be"),
        ("--pad 0 --variants pad-reflect", "--variants pad-reflect: --pad-mode reflect: has no effect, --pad 0 pads"),
        ("--pooler mean --variants pooler-depth-1", "--variants pooler-depth-1: --pooler-depth 1: --pooler mean has"),
        ("--min-area 0.3", "--min-area 0.3: has no effect, --crop pad takes whole images"),
        ("--pooler mean --dropout 0.3 --encoders resnet50", "--dropout 0.3: has no effect, --pooler mean has no"),
        ("--finetune.dropout 0.3 --encoders resnet50", "--finetune.dropout 0.3: has no effect, --encoder resnet50 has"),
        ("--finetune.pad 0 --finetune.pad-mode reflect", "--finetune.pad-mode reflect: has no effect, --pad 0 pads"),
        ("--labels 100% --label-seed 3 --probes 0", "--finetune.label-seed 3: has no effect, every label is learned"),
        (
            "--pooler none --encoders resnet50 --variants positions-query",
            "--variants positions-query: --positions query: has no effect, with --pooler none nothing reads",
        ),
        (
            "--held-out 0 --pretrain.evaluate-every 7",
            "--pretrain.evaluate-every 7: has no effect, --held-out 0 leaves nothing to evaluate on",
        ),
    ],
)
def test_stages_that_do_not_go_together(words: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        tasks(words)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "words",
    [
        "--labels 8% --dropout 0.3 --heads 8 --variants all", "--labels 100% --label-seed 3 --encoders resnet50",
        "--labels 5%,100% --label-seed 3 --pretrain.pad-mode reflect",
        "--labels 8% --positions query --held-out 0 --evaluate-every 7", "--labels 8% --width 0.015625 --heads 4",
        "--labels 8%,100% --vary-labels --finetune.crop resized", "--labels 100% --label-seed 3 --probes 0 --tune",
        "--labels 8% --pooler mean --finetune.crop resized --finetune.min-area 0.3 --encoders resnet36-attention",
    ],
)  # fmt: skip
def test_every_run_takes_its_words_and_has_what_means_something_to_it(words: str, tmp_path: Path) -> None:
    """A setting may be for some of the runs: the others are not told, and their command lines would refuse it."""
    plan = planner(f"cifar10 --data d --variants pooler-mean,pooler-max,pad-none,trunk-patches {words}", tmp_path)
    plan.check_said()
    asked = plan.asked
    for kind in plan.kinds():
        task, runs = plan.finetuning(kind, 3), []
        if task.needs is not None:
            pretraining = settings(task.needs)
            runs.append((pretraining, asked.pretrain))
            if not task.needs.folder.exists():
                RunFolder(task.needs.folder).claim(pretraining, "pretrain", {})
        for config, said in [*runs, (settings(task), asked.finetune)]:
            blocks = config.pooler_depth if config.pooler == "attention" else 0
            attends = blocks and getattr(config, "encoder", "") != "resnet50"
            assert config.dropout == (said.dropout if attends else 0.1), task.words
            if isinstance(config, FinetuneConfig):
                of_seed = 3 if asked.protocol.vary_labels else asked.finetune.label_seed
                assert config.label_seed == (of_seed if config.labels != "100%" else 0)
            if kind.variant != "pad-reflect":
                assert config.pad_mode == (said.pad_mode if config.pad and config.crop == "pad" else "zero")


def test_a_setting_in_vain_beside_a_run_that_is_given(tmp_path: Path) -> None:
    given = tmp_path / "given"
    RunFolder(given).claim(recipe("cifar10").pretrain, "pretrain", {})
    plan = planner(f"cifar10 --data d --from {given} --dropout 0.3 --encoders resnet50", tmp_path / "out")
    with pytest.raises(UserError, match=r"^--dropout 0.3: has no effect, --encoder resnet50 has no attention"):
        plan.check_said()
    planner(f"cifar10 --data d --from {given} --dropout 0.3", tmp_path / "out").check_said()


def test_all_variants_are_all_that_make_sense() -> None:
    plan = planner("imagenet224 --data d --labels 5% --variants all")
    assert set(plan.left_out) == {"pad-reflect"}
    assert set(plan.variants) == set(VARIANTS) - {"pad-reflect"}
    flat = planner("cifar10 --data d --pooler-depth 2 --variants all --pad 0 --encoders resnet50")
    assert set(flat.left_out) == {"pad-reflect"}
    control = flat.pretraining("control")
    assert control is not None
    assert "--pooler-depth" not in control.words, "u = 0 has no attention blocks, whatever the base has"


def test_every_subset_encoder_and_start_has_its_run() -> None:
    plan = planner("cifar10 --data d --labels 20%,5% --encoders resnet50,resnet36-attention")
    kinds = plan.kinds()
    assert len(kinds) == len(set(kinds)) == 2 * 2 * 2
    scratch = Kind(encoder="resnet36-attention", labels="5%", start="scratch")
    assert scratch in kinds
    task = plan.finetuning(scratch, 3)
    assert task.needs is None
    config = settings(task)
    assert isinstance(config, FinetuneConfig)
    assert (config.scratch, config.labels, config.encoder, config.seed) == (True, "5%", "resnet36-attention", 3)
    assert (config.label_seed, config.data, config.out, config.hold_back) == (0, "d", task.folder, 0)


def test_a_share_is_asked_for_once_however_it_is_written() -> None:
    assert parse_protocol(["cifar10", "--labels", "20%,5%,5.0%,20%"]).protocol.label_shares == ("5%", "20%")


def test_seeds_share_a_subset_unless_asked() -> None:
    for words, label_seed in (("", 0), (" --vary-labels", 3), (" --label-seed 9", 9)):
        plan = planner("cifar10 --data d" + words)
        config = settings(plan.finetuning(Kind(encoder="resnet50", labels="5%", start="scratch"), 3))
        assert isinstance(config, FinetuneConfig)
        assert config.label_seed == label_seed


def test_pretrained_runs_wait_for_their_pretraining() -> None:
    plan = planner("cifar10 --data d --variants keep-0.5 --width 0.5 --labels 5% --encoders resnet50")
    needs = {}
    for kind in plan.kinds():
        if kind.start == "pretrained":
            task = plan.finetuning(kind, 0)
            assert task.needs is not None
            assert f"--from {task.needs.folder}" in " ".join(task.words)
            needs[kind.variant] = settings(task.needs)
    assert {name: (c.keep, c.pooler, c.width) for name, c in needs.items() if isinstance(c, PretrainConfig)} == {
        "base": (0.75, "attention", 0.5), "control": (0.75, "none", 0.5), "keep-0.5": (0.5, "attention", 0.5),
    }  # fmt: skip


def test_the_control_comes_with_any_ablation() -> None:
    assert variant_names("base") == ("base",)
    assert variant_names("pad-none") == ("base", "control", "pad-none")
    assert variant_names("control") == ("base", "control")
    assert set(variant_names("all")) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_run_that_can_be_asked_for(name: str) -> None:
    """Each changes what it says and nothing else, in pretraining or in finetuning."""
    plan, variant = planner(f"cifar10 --data d --variants {name}"), VARIANTS[name]
    base, changed = plan.pretraining("base"), plan.pretraining(name)
    assert base is not None
    assert changed is not None
    a, b = dataclasses.asdict(settings(base)), dataclasses.asdict(settings(changed))
    expected = {key: value for key, value in variant.pretrain.items() if value != a[key]}
    assert {key: value for key, value in b.items() if value != a[key] and key != "out"} == expected
    assert (base.folder == changed.folder) == (not expected)
    for kind in plan.kinds():
        if kind.variant == name and not variant.pretrain:
            # Its words name a run that is not there yet, so they are looked at as they are.
            words = plan.finetuning(kind, 0).words
            for key, value in variant.finetune.items():
                assert words[words.index("--" + key.replace("_", "-")) + 1] == value


def test_pretraining_is_probed_at_moments_that_it_keeps() -> None:
    plan = planner("cifar10 --data d --labels 5%,20% --steps 90 --probes 3")
    pretraining = plan.pretraining("base")
    assert pretraining is not None
    config = settings(pretraining)
    assert (config.checkpoint_every, config.keep_checkpoints, config.steps) == (30, 3, 90)
    first, second, last = plan.probes("base")
    for task, step in ((first, 30), (second, 60), (last, None)):
        assert task.needs == pretraining
        assert task.words[:4] == ("probe", "cifar10", "--from", str(pretraining.folder))
        assert task.words[task.words.index("--labels") + 1] == "20%"
        assert ("--checkpoint" in task.words) == (step is not None)
        assert step is None or task.words[task.words.index("--checkpoint") + 1] == str(step)
    assert len({task.folder for task in (first, second, last)}) == 3
    assert planner("cifar10 --data d --probes 0").probes("base") == []
    with pytest.raises(UserError, match=r"--probes 7: must divide --pretrain.steps 90"):
        planner("cifar10 --data d --steps 90 --probes 7").pretraining("base")


def test_what_is_said_to_both_stages_and_means_something_to_one_goes_there() -> None:
    """A run's own command line would refuse what has no effect on it."""
    plan = planner("cifar10 --data d --held-out 0 --evaluate-every 7 --probes 2 --steps 60 --checkpoint-every 9")
    pretraining = plan.pretraining("base")
    assert pretraining is not None
    config = settings(pretraining)
    assert config.evaluate_every == recipe("cifar10").pretrain.evaluate_every
    assert config.checkpoint_every == 30
    finetuning = settings(plan.finetuning(plan.kinds()[0], 0))
    assert (finetuning.evaluate_every, finetuning.checkpoint_every) == (7, 9)
    assert told(plan.asked) == "--probes 2: pretraining is saved every 30 steps, to be probed there, and keeps all"
    assert told(planner("cifar10 --data d --probes 1").asked) is None


def test_moments_that_a_run_is_past_without_a_checkpoint(tmp_path: Path) -> None:
    plan = planner("cifar10 --data d --steps 90 --probes 3", tmp_path)
    checkpoints = tmp_path / "pretrain" / "base" / "checkpoints"
    (checkpoints / "step-000000030").mkdir(parents=True)
    assert len(plan.probes("base")) == 3, "60 and 90 are to come"
    (checkpoints / "step-000000030").rename(checkpoints / "step-000000045")
    with pytest.raises(UserError, match=r"--probes 3: .*base is past step 30 and has kept no checkpoint of it; take"):
        plan.probes("base")
    plan.probes("control")
    (tmp_path / "probe" / "base" / "100-step-30").mkdir(parents=True)
    (tmp_path / "probe" / "base" / "100-step-30" / "result.json").write_text("{}")
    assert len(plan.probes("base")) == 3, "probed then, and its checkpoint may go"
    (tmp_path / "pretrain" / "base" / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"is past step 60"):
        plan.probes("base")


def test_probes_with_more_labels_are_other_probes() -> None:
    few, many = (planner(f"cifar10 --data d --labels {labels}").probes("base") for labels in ("5%,20%", "5%,100%"))
    assert {task.folder for task in few}.isdisjoint(task.folder for task in many)
    again = planner("cifar10 --data d --labels 8%,20%").probes("base")
    assert [task.folder for task in few] == [task.folder for task in again]


def test_a_variant_that_changes_nothing_is_the_base() -> None:
    """Its runs are not made twice, nor is the base compared with itself."""
    plan = planner("cifar10 --data d --labels 5% --variants keep-0.75,pooler-depth-3,keep-0.5 --tune")
    by_kind = {kind: plan.finetuning(kind, 1, Point(lr=0.2)) for kind in plan.kinds()}
    for kind, task in by_kind.items():
        base = by_kind.get(dataclasses.replace(kind, variant="base"))
        assert (task == base) == (kind.variant in ("base", "keep-0.75", "pooler-depth-3")), kind
    kept = Kind(encoder="resnet50", labels="5%", start="pretrained", variant="keep-0.75")
    half = Point(lr=0.2, keep=0.5)  # what was chosen for the base, which makes the variant another
    assert plan.finetuning(kept, 1, half) != plan.finetuning(dataclasses.replace(kept, variant="base"), 1, half)


def test_another_network_has_a_baseline_of_its_own() -> None:
    plan = planner("cifar10 --data d --labels 5% --variants pooler-mean,trunk-patches,keep-0.5,pooler-fresh")
    scratch = {(kind.variant, kind.encoder) for kind in plan.kinds() if kind.start == "scratch"}
    assert scratch == {
        ("base", "resnet50"), ("base", "resnet36-attention"), ("pooler-mean", "resnet36-attention"),
        ("trunk-patches", "resnet50"), ("trunk-patches", "resnet36-attention"),
    }  # fmt: skip
    for variant, encoder in scratch:
        config = settings(plan.finetuning(Kind(variant=variant, encoder=encoder, labels="5%", start="scratch"), 0))
        assert isinstance(config, FinetuneConfig)
        assert config.pooler == ("mean" if variant == "pooler-mean" else "attention")
        assert config.trunk_input == ("patches" if variant == "trunk-patches" else "image")


def test_from_a_run_that_is_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = dataclasses.asdict(dataclasses.replace(recipe("cifar10").pretrain, width=0.25, keep=0.5))
    record = {"command": "pretrain", "settings": config, "facts": {}}
    (run / "config.json").write_text(json.dumps(record, default=str))
    plan = planner(f"cifar10 --data d --from {run}")
    for kind in plan.kinds():
        task = plan.finetuning(kind, 0)
        assert task.needs is None
        assert ("--from" in task.words) == (kind.start == "pretrained")
        assert task.words[task.words.index("--width") + 1] == "0.25"
    with pytest.raises(UserError, match=r"--from .*run: has --pooler attention, and control needs none"):
        planner(f"cifar10 --data d --from {run} --variants control").pretraining("control")


def test_the_grid_is_the_papers() -> None:
    asked = parse_protocol(["cifar10", "--tune"])
    assert [point.lr for point in grid(asked, "scratch")] == [0.01, 0.02, 0.05, 0.1, 0.2, 0.4]
    points = grid(asked, "pretrained")
    assert len(points) == len(set(points)) == 12
    assert {point.keep for point in points} == {0.75, 0.5}


def finish(task: RunTask, accuracy: float, curve: list[float], pruned: bool = False) -> None:
    """Write what the trial's run would have left."""
    task.folder.mkdir(parents=True)
    steps = [task.steps * (index + 1) // 4 for index in range(len(curve))]
    lines = [{"step": step, "validation_accuracy": value} for step, value in zip(steps, curve, strict=True)]
    (task.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    name = "pruned.json" if pruned else "result.json"
    (task.folder / name).write_text(json.dumps({"validation_accuracy": accuracy, "step": steps[-1]}))


def test_trials_are_judged_by_labels_held_back_and_the_best_is_taken(tmp_path: Path) -> None:
    words = "cifar10 --data d --tune --labels 5% --encoders resnet50 --learning-rates 0.1,0.2,0.4 --steps 80"
    asked = parse_protocol(words.split())
    plan = Planner(asked, tmp_path)
    tuning = Tuning(asked, plan)
    assert len(tuning.tasks()) == 3 + 2 * 3 + 2  # trials from scratch, pretrained for each keep, pretrainings
    scratch = Kind(encoder="resnet50", labels="5%", start="scratch")
    trials = tuning.trials[scratch]
    for task in trials.values():
        config = settings(task)
        assert isinstance(config, FinetuneConfig)
        assert config.hold_back == 0.1
    low, middle, high = trials.values()
    finish(low, 0.5, [0.2, 0.3, 0.4, 0.5])
    finish(middle, 0.6, [0.3, 0.4, 0.5, 0.6])
    # Behind the median of two, (0.3 + 0.4) / 2, but only from half of the steps on.
    high.folder.mkdir(parents=True)
    lines = [{"step": 10, "loss": 2.0}, {"step": 20, "validation_accuracy": 0.1}]
    (high.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tuning.hopeless(high) is None
    lines.append({"step": 40, "validation_accuracy": 0.34})
    (high.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tuning.hopeless(high) == {"step": 40, "validation_accuracy": 0.34}
    (high.folder / "pruned.json").write_text(json.dumps({"step": 40, "validation_accuracy": 0.34}))
    assert tuning.chosen(scratch) == Point(lr=0.2)
    told = {(trial.settings["lr"], trial.state, trial.step, trial.validation_accuracy) for trial in tuning.told()}
    assert told == {(0.1, "complete", 80, 0.5), (0.2, "complete", 80, 0.6), (0.4, "pruned", 40, 0.34)}
    assert [trial.settings for trial in tuning.told() if trial.chosen] == [{"lr": 0.2}]
    final = settings(plan.finetuning(scratch, 0, tuning.chosen(scratch)))
    assert isinstance(final, FinetuneConfig)
    assert (final.lr, final.hold_back) == (0.2, 0)


def test_a_trial_above_the_median_goes_on(tmp_path: Path) -> None:
    words = "cifar10 --data d --tune --labels 5% --encoders resnet50 --steps 80"
    asked = parse_protocol(words.split())
    tuning = Tuning(asked, Planner(asked, tmp_path))
    first, second, third, other, *_ = tuning.trials[Kind(encoder="resnet50", labels="5%", start="scratch")].values()
    finish(first, 0.5, [0.2, 0.3, 0.4, 0.5])
    other.folder.mkdir(parents=True)
    (other.folder / "metrics.jsonl").write_text(json.dumps({"step": 40, "validation_accuracy": 0.1}) + "\n")
    assert tuning.hopeless(other) is None, "one trial has no median"
    finish(second, 0.6, [0.3, 0.4, 0.5, 0.6])
    third.folder.mkdir(parents=True)
    (third.folder / "metrics.jsonl").write_text(json.dumps({"step": 40, "validation_accuracy": 0.36}) + "\n")
    assert tuning.hopeless(third) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--labels 5%,,8%", "--labels 5%,,8%: separate what you want by commas"),
        ("--labels 5", "--labels 5: write a percentage such as 8%"),
        ("--seeds 0", "--seeds 0: must be at least 1"),
        ("--encoders resnet18", "--encoders resnet18: must be among resnet50, resnet36-attention"),
        ("--variants keep-0.6", "--variants keep-0.6: there is none of that name; there are base, control,"),
        ("--learning-rates 0.1,fast", "--learning-rates fast: is no number"),
        ("--learning-rates 0.1,-1", "--learning-rates -1: must be above 0"),
        ("--probes -1", "--probes -1: must be at least 0"),
        ("--probes 2 --from run", "--probes 2: a run that --from names has the checkpoints that it has"),
        ("--jobs 0", "--jobs 0: must be at least 1"),
        ("--lr much", "--pretrain.lr"),
        ("--keeps 0.5", "--keeps 0.5: is what --tune tries; add that, or leave this out"),
        ("--learning-rates 0.1", "--learning-rates 0.1: is what --tune tries"),
        ("--tune --from run --keeps 0.5", "--keeps 0.5: is tried in pretraining, and --from names a run that is done"),
        ("--tune --keep 0.5", "--keep 0.5: has no effect, --tune chooses among --keeps"),
        ("--tune --finetune.lr 0.3", "--finetune.lr 0.3: has no effect, --tune chooses among --learning-rates"),
        ("--tune --from run --lr 0.3", "--finetune.lr 0.3: has no effect, --tune chooses"),
        (
            "--tune --lr 0.3 --pretrain-learning-rates 0.1",
            "--pretrain.lr 0.3: has no effect, --tune chooses among --pretrain-learning-rates",
        ),
        ("--probes 2 --pretrain.checkpoint-every 9", "--pretrain.checkpoint-every 9: has no effect, with --probes 2"),
        ("--probes 2 --pretrain.keep-checkpoints 9", "--pretrain.keep-checkpoints 9: has no effect, with --probes 2"),
        ("--from run --keep 0.5", "--pretrain.keep 0.5: has no effect, --from names a run that is done"),
        ("--from run --pretrain.steps 9", "--pretrain.steps 9: has no effect, --from names a run"),
        ("--from run --pretrain.from x", "--pretrain.from x: has no effect, --from names a run"),
        ("--vary-labels --labels 100%", "--vary-labels: has no effect, --labels 100% leaves none out"),
        ("--vary-labels --label-seed 3", "--label-seed 3: has no effect, with --vary-labels every seed has its own"),
        ("--finetune.seed 3", "there is no such option"),
        ("--pooler-weights fresh", "there is no such option"),
        ("--encoder resnet50", "there is no such option"),
        ("--hold-back 0.1", "there is no such option"),
    ],
)
def test_what_makes_no_sense(words: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_protocol(["cifar10", *words.split()])
    assert said in str(refused.value)
