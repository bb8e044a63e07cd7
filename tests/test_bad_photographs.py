"""Files that are no images, and folders that do not suit: one line that names the file or the option, exit status 2."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastselfie.config import PretrainConfig
from fastselfie.errors import LocalError
from fastselfie.pipelines.decoder import Decoder
from fastselfie.pipelines.draws import ATTEMPTS, DRAWS, ROW
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_bytes import fault
from fastselfie.pipelines.image_folder import read_image_folder
from fastselfie.pipelines.view import View
from fastselfie.randomness import epoch_order
from fastselfie.training.pretrain import divide
from tests.command import assert_equal_runs, assert_refused, checkpoints, contents, fastselfie, metrics, succeed
from tests.photographs import CPU, flat_folder, images_of, jpeg, picture, pipeline, png, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

OPTIONS = ("--width", "0.0625", "--heads", "4", "--batch-size", "8", "--device", "cpu", "--precision", "fp32")
PRETRAIN = ("pretrain", "tiny", *OPTIONS, "--steps", "4", "--log-every", "1")
FINETUNE = ("finetune", "tiny", *OPTIONS, "--steps", "4", "--scratch")
# What the decoders below DALI say on their own; DALI_NVIMGCODEC_LOG_LEVEL has no value that silences errors.
DECODERS = re.compile(r"(\x1b\[[0-9;]*m)*\[ERROR\]|libpng error")
WHOLE = jpeg(picture(200, 300), subsampling=2)
BROKEN = WHOLE[:3] + b"nothing that decodes" + WHOLE[-2:]  # begins and ends as a JPEG file does


def assert_ended_by_a_file(ended: subprocess.CompletedProcess[str], run: Path, alone: bool) -> str:
    """Exit status 2, and the last line, the only one of its kind; that line. Unless alone, a decoder may speak too."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert [line for line in lines if line.startswith("fastselfie: ")] == lines[-1:]
    usual = ("using ", "data ", f"{run.name}: step ", "fastselfie: ")
    other = [line for line in lines if not line.startswith(usual)]
    assert all(not alone and DECODERS.match(line) for line in other), other
    return lines[-1]


def as_text(path: Path) -> None:
    path.write_text("not an image")


def as_empty(path: Path) -> None:
    path.write_bytes(b"")


def as_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def as_broken(path: Path) -> None:
    path.write_bytes(BROKEN)


def as_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (as_text, "is no JPEG or PNG image"),
        (as_empty, "is empty"),
        (as_truncated, "is cut off"),
        (as_broken, "is damaged"),
        (as_dangling, "cannot be read (No such file or directory)"),
    ],
)
def test_a_bad_file(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    """Found once it is read: most of them in training, whose run's folder is there by then."""
    data, run = flat_folder(tmp_path / "data", 24), tmp_path / "run"
    spoil(data / "07.jpg")
    ended = fastselfie(*PRETRAIN, "--held-out", "0", "--data", data, "--out", run, cwd=tmp_path)
    line = assert_ended_by_a_file(ended, run, alone=spoil is not as_broken)
    assert line.startswith(f"fastselfie: {data / '07.jpg'}: {said}")
    assert not (run / "result.json").exists()


def test_a_run_goes_on_once_the_file_is_good(tmp_path: Path) -> None:
    """Nothing is lost: the steps before it are saved, and the run ends as one that never met it."""
    data, options = flat_folder(tmp_path / "data", 24), ("--held-out", "0", "--steps", "6")
    good = (data / "07.jpg").read_bytes()
    succeed(*PRETRAIN, *options, "--data", data, "--out", "reference", cwd=tmp_path)
    first = next(start // 8 for start in range(0, 24, 8) if 7 in epoch_order(0, 0, 24)[start : start + 8])
    assert first > 0, "else there is nothing to save"
    as_broken(data / "07.jpg")
    ended = fastselfie(*PRETRAIN, *options, "--data", data, "--out", "run", cwd=tmp_path)
    assert_ended_by_a_file(ended, tmp_path / "run", alone=False)
    assert checkpoints(tmp_path / "run") == [first]
    (data / "07.jpg").write_bytes(good)
    succeed(*PRETRAIN, *options, "--data", data, "--out", "run", cwd=tmp_path)
    assert_equal_runs(tmp_path / "run", tmp_path / "reference")


def test_a_bad_held_out_file_loses_nothing_either(tmp_path: Path) -> None:
    """Met in the evaluation after step 2 of 4, before that step's line is logged."""
    for part, count in (("train", 16), ("val", 12)):
        flat_folder(tmp_path / "data" / part, count)
    options = ("--steps", "4", "--evaluate-every", "2", "--data", "data")
    succeed(*PRETRAIN, *options, "--out", "reference", cwd=tmp_path)
    watched = divide(PretrainConfig(recipe="tiny"), read_image_folder(tmp_path / "data")).held_out_rows[:4]
    bad = tmp_path / "data" / "val" / f"{min(set(range(1, 12, 2)) - set(watched.tolist())):02d}.jpg"
    good = bad.read_bytes()
    as_broken(bad)  # not one of the first four, which are looked at before the first step
    ended = fastselfie(*PRETRAIN, *options, "--out", "run", cwd=tmp_path)
    assert assert_ended_by_a_file(ended, tmp_path / "run", alone=False).endswith("run the same command again")
    assert checkpoints(tmp_path / "run") == [2]
    bad.write_bytes(good)
    succeed(*PRETRAIN, *options, "--out", "run", cwd=tmp_path)
    assert_equal_runs(tmp_path / "run", tmp_path / "reference")


def test_a_bad_file_is_named_when_its_batch_is_asked_for(tmp_path: Path) -> None:
    """Not when it is read ahead; and batches without it can still be had."""
    listed = write(tmp_path, [(f"{i}.jpg", jpeg(picture(40, 48, i))) for i in range(8)])
    order = epoch_order(3, 0, 8).tolist()
    for spoil in (as_text, as_broken):
        spoil(listed.path(order[5]))
        source = pipeline(listed, View(size=32), batch=2, prefetch=3)
        requests = [(start, start + 2) for start in range(0, 8, 2)]
        source.announce(requests)
        for request in requests[:2]:
            assert source.batch(*request).sample_B.tolist() == order[slice(*request)]
        for _ in range(2):
            with pytest.raises(LocalError, match=listed.path(order[5]).name):
                source.batch(*requests[2])
        assert source.batch(*requests[3]).sample_B.tolist() == order[6:8]


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_of_several_files_the_bad_one_is_named(crop: str, tmp_path: Path) -> None:
    listed = write(tmp_path, [(f"{i}.jpg", jpeg(picture(40, 48, i))) for i in range(8)])
    listed.path(5).write_bytes(BROKEN)
    view = View(size=32, crop=crop)  # type: ignore[arg-type]
    source = pipeline(listed, view, batch=8, prefetch=3)
    source.announce([(0, 8), (8, 16), (16, 24)])
    with pytest.raises(LocalError, match=r"5\.jpg: is damaged"):
        source.batch(0, 8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is empty"),
        (b"\xff\xd8", "is no JPEG or PNG image"),
        (b"GIF89a" + bytes(100), "is no JPEG or PNG image"),
        (WHOLE, None),
        (WHOLE + b"what a camera adds", None),
        (WHOLE[:-2], "is cut off"),
        (WHOLE[:3], "is cut off"),
        (png(picture(9, 9)), None),
        (png(picture(9, 9)) + bytes(7), None),
        (png(picture(9, 9))[:-12], "is cut off"),
    ],
)
def test_what_the_bytes_alone_tell(data: bytes, expected: str | None) -> None:
    assert fault(data) == expected


def decoded(data: bytes, *, at: float | None = None) -> bytes:
    """A plain view; or of a random resized crop of the smallest area, ``at`` 0 of the image's top to 1 of its end."""
    view = View(size=32) if at is None else View(size=32, crop="resized")
    draws = flip = None
    if at is not None:
        draws, flip = np.full((1, DRAWS), 0.5), np.zeros(1, dtype=np.int32)
        draws[0, :ATTEMPTS], draws[0, ROW] = 0, at
    decoder = Decoder(view, batch=1, threads=1, device=CPU)
    contents = [np.frombuffer(data, dtype=np.uint8)]
    decoder.schedule(Encoded(paths=[Path("photo.jpg")], data=contents, draws=draws, flip=flip))
    return images_of(decoder.take()[0]).tobytes()


@pytest.mark.parametrize("kept", [100, 700, len(WHOLE) // 2, len(WHOLE) - 200])
def test_a_truncated_jpeg_is_refused(kept: int) -> None:
    """Not filled up with grey, as other decoders do."""
    with pytest.raises(LocalError, match=r"photo\.jpg: is damaged"):
        decoded(WHOLE[:kept])


def test_a_truncated_jpeg_of_which_a_part_is_wanted() -> None:
    """A window above the gap is what it is of the whole file; one that reaches into it is refused."""
    part = WHOLE[: len(WHOLE) // 2]
    assert decoded(part, at=0.0) == decoded(WHOLE, at=0.0)
    with pytest.raises(LocalError, match=r"photo\.jpg: is damaged"):
        decoded(part, at=0.999)


def test_only_the_end_mark_missing() -> None:
    """Refused where the last rows are wanted, though no pixel is missing."""
    assert decoded(WHOLE[:-2], at=0.5) == decoded(WHOLE, at=0.5)
    with pytest.raises(LocalError, match=r"photo\.jpg: is damaged"):
        decoded(WHOLE[:-2])


@pytest.mark.parametrize("data", [jpeg(picture(200, 300), progressive=True), png(picture(200, 300))])
def test_other_truncated_files_are_refused_wherever_the_window_is(data: bytes) -> None:
    for at in (None, 0.0, 0.999):
        with pytest.raises(LocalError, match=r"photo\.jpg: is damaged"):
            decoded(data[: len(data) // 4], at=at)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (FINETUNE, "--data: the images of data have no labels; finetuning needs class folders in train/ and val/"),
        ((*PRETRAIN, "--batch-size", "19"), "--batch-size 19: there are only 18 images to train on"),
        (
            (*PRETRAIN, "--data", "few", "--held-out", "64"),
            "--held-out 64: few has no val/ or test/, and its 19 images are too few to set a tenth aside; add val/, or"
            " take --held-out 0 to measure no context gap",
        ),
        ((*PRETRAIN, "--data", "synthetic", "--crop", "resized"), "--crop resized: random resized crops are taken"),
        ((*FINETUNE, "--data", "untested"), "--data: untested has no val/ or test/ to test on"),
    ],
)
def test_folders_that_do_not_suit(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    flat_folder(tmp_path / "data", 20)
    flat_folder(tmp_path / "few", 19)
    for name in "ab":
        flat_folder(tmp_path / "untested" / "train" / name, 10)
    before = contents(tmp_path)
    line = assert_refused(fastselfie(words[0], words[1], "--data", "data", *words[2:], "--out", "run", cwd=tmp_path))
    assert said in line
    assert contents(tmp_path) == before


def test_too_few_to_set_any_aside_train_without(tmp_path: Path) -> None:
    flat_folder(tmp_path / "few", 19)
    succeed(*PRETRAIN, "--data", "few", "--held-out", "0", "--out", "run", cwd=tmp_path)
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert not any("context_gap" in line for line in lines)
