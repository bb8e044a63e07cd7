"""``fastselfie probe`` and nearest neighbours while pretraining, through the program, where the answer is known."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from fastselfie.config import PretrainConfig
from fastselfie.evaluation.frozen import frozen_network
from fastselfie.evaluation.probe_features import ProbedImages
from fastselfie.evaluation.probe_table import show
from fastselfie.pipelines.cifar import read_cifar10
from fastselfie.training.features import KINDS
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.world import World
from tests.command import assert_equal_runs, assert_refused, checkpoint, contents, in_process, metrics
from tests.photographs import jpeg, picture, undecodable, write

TRAIN, TEST = 200, 100
COLOURS = np.array(
    [
        *([230, 40, 40], [40, 230, 40], [40, 40, 230], [230, 230, 40], [230, 40, 230]),
        *([40, 230, 230], [20, 20, 20], [240, 240, 240], [120, 120, 120], [140, 70, 20]),
    ]
)
NETWORK = ("--width", "0.0625", "--heads", "4", "--device", "cpu", "--precision", "fp32")
STEPS = 6
PRETRAIN = (
    *("pretrain", "tiny", *NETWORK, "--batch-size", "16", "--steps", str(STEPS), "--held-out", "60"),
    *("--checkpoint-every", "3", "--log-every", "4", "--knn-every", "2", "--knn-images", "900"),
)


def write_cifar(folder: Path, labels: np.ndarray[Any, Any], shown: np.ndarray[Any, Any]) -> Path:
    """CIFAR-10's layout: images all of one of the colours ``shown``, that are called ``labels``."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.repeat(COLOURS[shown].astype(np.uint8), 1024, axis=1)  # channel by channel
    edges = [*range(0, TRAIN + 1, TRAIN // 5), TRAIN + TEST]
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, start, stop in zip(names, edges[:-1], edges[1:], strict=True):
        batch = {"data": pixels[start:stop], "labels": labels[start:stop].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def colours(here: Path) -> Path:
    """Ten classes, of one colour each, with as many images to train on as neighbours vote."""
    generator = np.random.default_rng(1)
    labels = np.concatenate([generator.permutation(np.arange(images) % 10) for images in (TRAIN, TEST)])
    return write_cifar(here / "colours", labels, labels)


@pytest.fixture(scope="module")
def run(colours: Path, here: Path) -> Path:
    """A pretraining run on them."""
    pretrain(*PRETRAIN, "--data", colours, "--out", here / "run", cwd=here)
    return here / "run"


def pretrain(*words: str | Path, cwd: Path) -> None:
    """In this process, for the sake of time."""
    ended = in_process(*words, cwd=cwd)
    assert ended.returncode == 0, ended.stderr


def probe(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return in_process("probe", "tiny", "--device", "cpu", "--precision", "fp32", *words, cwd=cwd)


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read


def figures(folder: Path) -> list[dict[str, Any]]:
    """The probes without what the machine's mood decides."""
    return [{name: value for name, value in p.items() if not name.endswith("_s")} for p in result(folder)["probes"]]


@pytest.fixture(scope="module")
def probed(run: Path, colours: Path, here: Path) -> subprocess.CompletedProcess[str]:
    ended = probe("--data", colours, "--from", run, cwd=here)
    assert ended.returncode == 0, ended.stderr
    return ended


def test_where_features_decide_the_label_all_is_right(
    probed: subprocess.CompletedProcess[str], here: Path, run: Path
) -> None:
    folder = here / "runs" / "tiny-probe"
    read = result(folder)
    assert [(p["network"], p["features"]) for p in read["probes"]] == [
        (network, kind) for network in ("pretrained", "fresh") for kind in KINDS
    ]
    for p in read["probes"]:
        assert (p["linear"], p["knn"], p["size"], p["converged"]) == (1, 1, 64, True), p
    assert (read["step"], read["labelled_images"], read["tested_images"], read["classes"]) == (STEPS, TRAIN, TEST, 10)
    assert all(probed.stdout.count(kind) >= 1 for kind in KINDS)
    assert probed.stdout.count("1.000") == 16
    assert f"features take {4 * (TRAIN + TEST) * 64 * 4 / 2**20:.0f} MiB" in probed.stderr
    assert len((folder / "labelled.txt").read_text().splitlines()) == TRAIN


def test_nearest_neighbours_in_pretraining(run: Path) -> None:
    looked = {line["step"]: line for line in metrics(run) if "knn_accuracy" in line}
    assert list(looked) == [2, 4, 6]
    assert [line["knn_accuracy"] for line in looked.values()] == [1, 1, 1]
    assert looked[6]["knn_accuracy_pooler"] == 1
    assert set(looked[2]) == {"step", "knn_accuracy", "knn_accuracy_pooler"}
    assert {"loss", "context_gap"} <= set(looked[6])


def test_neighbours_do_not_disturb_training(run: Path, colours: Path, here: Path) -> None:
    pretrain(*PRETRAIN[:-4], "--data", colours, "--out", here / "unwatched", cwd=here)
    ends = [(folder / "encoder.safetensors").read_bytes() for folder in (run, here / "unwatched")]
    assert ends[0] == ends[1]


def test_shuffled_labels_give_chance(run: Path, here: Path) -> None:
    """Whatever is answered, the right answers to labels drawn at random are binomial; 16 figures at 1e-6 each."""
    generator = np.random.default_rng(2)
    shown, labels = generator.integers(0, 10, (2, TRAIN + TEST))
    ended = probe("--data", write_cifar(here / "shuffled", labels, shown), "--from", run, "--out", "s", cwd=here)
    assert ended.returncode == 0, ended.stderr
    low, high = scipy.stats.binom.ppf([5e-7, 1 - 5e-7], TEST, 0.1) / TEST
    assert high < 0.3
    for p in figures(here / "s"):
        assert low <= p["linear"] <= high, p
        assert low <= p["knn"] <= high, p


def test_done_is_said(probed: subprocess.CompletedProcess[str], run: Path, colours: Path, here: Path) -> None:
    folder = here / "runs" / "tiny-probe"
    before = contents(folder)
    ended = probe("--data", colours, "--from", run, cwd=here)
    assert (ended.returncode, ended.stdout) == (0, probed.stdout)
    assert "tiny-probe: already done; its figures are in result.json" in ended.stderr
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--neighbours", "3"), "--out runs/tiny-probe: holds a run with --neighbours 20, not 3"),
        (("--checkpoint", "3"), "--out runs/tiny-probe: holds a run with --checkpoint None, not 3"),
        (("--labels", "50%"), "--out runs/tiny-probe: holds a run with --labels 100%, not 50%"),
    ],
)
def test_other_settings_in_the_same_folder(
    words: tuple[str, ...], line: str, probed: object, run: Path, colours: Path, here: Path
) -> None:
    before = contents(here / "runs")
    assert line in assert_refused(probe("--data", colours, "--from", run, *words, cwd=here))
    assert contents(here / "runs") == before


def test_a_checkpoint_and_a_half_done_probe(
    probed: object, run: Path, colours: Path, tmp_path: Path, here: Path
) -> None:
    """The last checkpoint is the end; an earlier one is another network; what was begun is finished."""
    asked = ("--data", colours, "--from", run, "--no-fresh", "--no-linear")
    for step in (3, STEPS):
        ended = probe(*asked, "--checkpoint", str(step), "--out", tmp_path / str(step), cwd=here)
        assert ended.returncode == 0, ended.stderr
        assert result(tmp_path / str(step))["step"] == step
    whole = [p for p in figures(here / "runs" / "tiny-probe") if p["network"] == "pretrained"]
    assert [p["knn"] for p in figures(tmp_path / str(STEPS))] == [p["knn"] for p in whole]
    assert {p["linear"] for p in figures(tmp_path / "3")} == {None}
    facts = [json.loads((tmp_path / str(s) / "config.json").read_text())["facts"] for s in (3, STEPS)]
    assert facts[0]["weights"] != facts[1]["weights"]
    before = figures(tmp_path / "3")
    (tmp_path / "3" / "result.json").unlink()
    assert probe(*asked, "--checkpoint", "3", "--out", tmp_path / "3", cwd=here).returncode == 0
    assert figures(tmp_path / "3") == before


def test_an_unfinished_run_is_probed_by_checkpoint_alone(run: Path, colours: Path, tmp_path: Path) -> None:
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    for name in ("encoder.safetensors", "result.json"):
        (unfinished / name).unlink()
    shutil.rmtree(checkpoint(unfinished, STEPS))
    line = assert_refused(probe("--data", colours, "--from", unfinished, cwd=tmp_path))
    assert "unfinished: is not finished; run its command again to go on with it, or name a checkpoint" in line
    line = assert_refused(probe("--data", colours, "--from", unfinished, "--checkpoint", "4", cwd=tmp_path))
    assert line.endswith("has no checkpoint of that step; there are: 3")
    pretrain(*PRETRAIN, "--data", colours, "--out", unfinished, cwd=tmp_path)
    assert_equal_runs(unfinished, run)


def test_photographs(run: Path, here: Path) -> None:
    """Two classes of grey pictures in folders, one too bad to be used: it is named and left out."""
    data = here / "photographs"
    for part, count in (("train", 14), ("val", 6)):
        for name in ("dark", "light"):
            images = [picture(40, 44, index) // 4 + 180 * (name == "light") for index in range(count)]
            write(data / part / name, [(f"{index}.jpg", jpeg(image)) for index, image in enumerate(images)])
    (data / "val" / "dark" / "3.jpg").write_bytes(undecodable(picture(40, 44, 3)))
    asked = ("--data", data, "--from", run, "--no-fresh", "--out", "p", "--labels", "50%", "--neighbours", "5")
    ended = probe(*asked, cwd=here)
    assert ended.returncode == 2
    assert "--max-bad-share 0.01: 1 of 26 images cannot be used" in ended.stderr.splitlines()[-1]
    ended = probe(*asked, "--max-bad-share", "0.1", "--batch-size", "4", cwd=here)
    assert ended.returncode == 2, "another batch has other statistics"
    ended = probe(*asked, "--max-bad-share", "0.1", cwd=here)
    assert ended.returncode == 0, ended.stderr
    assert (result(here / "p")["labelled_images"], result(here / "p")["tested_images"]) == (14, 11)
    assert "3.jpg" in (here / "p" / "quarantine.csv").read_text()
    assert all((p["linear"], p["knn"]) == (1, 1) for p in figures(here / "p"))
    line = assert_refused(probe(*asked[:2], "--from", run, "--out", "q", "--labels", "5%", cwd=here))
    assert "--neighbours 20: there are only 2 labelled images; take at most that many" in line
    line = assert_refused(probe(*asked[:2], "--from", run, "--out", "q", "--labels", "5%", "--no-knn", cwd=here))
    assert "--labels 5%: leaves one image of each class" in line


def test_refusals(run: Path, colours: Path, tmp_path: Path) -> None:
    flat, untested = tmp_path / "flat", tmp_path / "untested"
    for folder in (flat, untested / "train" / "a", untested / "train" / "b"):
        write(folder, [(f"{index}.jpg", jpeg(picture(40, 40, index))) for index in range(12)])
    before = contents(tmp_path)
    known = ("--data", colours)
    for words, line in (
        (known, "--from RUN: name the pretraining run"),
        ((*known, "--from", "nowhere"), "--from nowhere: there is no such folder"),
        ((*known, "--from", run, "--no-linear", "--no-knn"), "--no-linear: goes against --no-knn"),
        ((*known, "--from", run, "--temperature", "0"), "--temperature 0.0: must be a finite number above 0"),
        ((*known, "--from", run, "--batch-size", "0"), "--batch-size 0: must be at least 1"),
        ((*known, "--from", run, "--prefetch", "0"), "--prefetch 0: must be at least 1"),
        ((*known, "--from", run, "--labels", "8"), "--labels 8: write a percentage"),
        ((*known, "--from", run, "--lr", "0.1"), "--lr 0.1: there is no such option"),
        (("--data", flat, "--from", run), "have no labels; probing needs class folders in train/ and val/"),
        (("--data", untested, "--from", run), "has no val/ or test/ to test on"),
    ):
        assert line in assert_refused(probe(*words, cwd=tmp_path))
    line = assert_refused(in_process("probe", "imagenet224", "--from", run, cwd=tmp_path))
    assert line.endswith(
        "was pretrained by recipe tiny on 32x32 images, and imagenet224 has 224x224; probe with recipe tiny"
    )
    for data, lack in ((flat, "labels"), (untested, "val/ or test/ to ask for")):
        asked = ("--data", data, "--batch-size", "4", "--knn-every", "5", "--device", "cpu")
        line = assert_refused(in_process("pretrain", "tiny", *asked, cwd=tmp_path))
        assert f"--knn-every 5: {data.name} has no {lack}" in line
    assert {name: data for name, data in contents(tmp_path).items() if ".index" not in name} == before


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("features.Extractor.__call__", "--batch-size 250: does not fit"),
        ("neighbours.F.normalize", "--labels 100%: fea"),
    ],
)
def test_a_full_device(
    where: str, said: str, run: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **settings: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(f"fastselfie.training.{where}", full)
    words = ("--no-linear", "--no-fresh", "--data", colours, "--from", run, "--out", "full")
    ended = probe(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"fastselfie: {said}")
    assert not (tmp_path / "full" / "result.json").exists()


def test_weights_of_another_shape(run: Path, colours: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(run, tmp_path / "changed")
    record = json.loads((changed / "config.json").read_text())
    record["settings"]["width"] = 0.125
    (changed / "config.json").write_text(json.dumps(record))
    line = assert_refused(probe("--data", colours, "--from", changed, "--out", "o", cwd=tmp_path))
    assert "--from: its weights do not fit the settings in its config.json" in line
    record["settings"]["width"] = "wide"
    (changed / "config.json").write_text(json.dumps(record))
    assert f"{changed}/config.json: " in assert_refused(probe("--data", colours, "--from", changed, cwd=tmp_path))


def test_the_untrained_network_has_statistics_of_patches(run: Path, colours: Path) -> None:
    """So that both networks' features on whole images suffer alike; the first norm's are recomputed in NumPy."""
    settings = PretrainConfig(
        recipe="tiny",
        width=1 / 16,
        heads=4,
        device="cpu",
        precision="fp32",
        batch_size=30,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    source, world = read_cifar10(colours), World(device=torch.device("cpu"))
    network = frozen_network(settings, world, None)
    assert not network.training
    images = ProbedImages(
        run=settings,
        world=world,
        train=source.train,
        rows=torch.arange(30),
        test=source.test,
        quarantine=Quarantine(1, 1),
    )
    images.features(network, patch_statistics=True)
    pixels = source.train.images_SHW3[:30].reshape(30, 4, 8, 4, 8, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 8, 8)
    padded = np.pad(pixels / 255, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    maps = np.einsum("bchwij,ocij->obhw", windows, network.trunk.stem.conv.weight.detach().double().numpy())
    norm = network.trunk.get_submodule("stages.0.0.norm1")
    np.testing.assert_allclose(norm.running_mean, maps.mean(axis=(1, 2, 3)), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_allclose(norm.running_var, maps.var(axis=(1, 2, 3), ddof=1), rtol=1e-3)  # type: ignore[arg-type]


def test_brackets_in_a_folder_s_name_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    probes = [{"network": "pretrained", "features": "trunk", "linear": 0.5, "knn": None}]
    result = {"data": "[red]", "labelled_images": 3, "step": 4, "tested_images": 5, "most_frequent_class": 0.5}
    show(result | {"probes": probes})
    assert capsys.readouterr().out.startswith("[red], 3 labels, step 4")
