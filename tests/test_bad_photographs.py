"""Files that are no images are named, and the run goes on; folders that do not suit end in one line, exit status 2."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fastselfie.errors import LocalError
from fastselfie.pipelines.decoder import DaliDecoder
from fastselfie.pipelines.draws import ATTEMPTS, DRAWS, ROW
from fastselfie.pipelines.graph_runner import Encoded, GraphRunner
from fastselfie.pipelines.image_bytes import BadImage, check_bytes, fault, sides, size_fault
from fastselfie.pipelines.reading import Reader
from fastselfie.pipelines.source import Files
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import View
from fastselfie.randomness import epoch_order
from tests.command import (
    assert_equal_runs,
    assert_refused,
    checkpoints,
    contents,
    fastselfie,
    metrics,
    stop_at,
    succeed,
)
from tests.photographs import CPU, flat_folder, images_of, jpeg, picture, pipeline, png, undecodable, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

OPTIONS = ("--width", "0.0625", "--heads", "4", "--batch-size", "8", "--device", "cpu", "--precision", "fp32")
PRETRAIN = ("pretrain", "tiny", *OPTIONS, "--steps", "4", "--log-every", "1")
FINETUNE = ("finetune", "tiny", *OPTIONS, "--steps", "4", "--scratch")
# What the decoders below DALI say on their own; DALI_NVIMGCODEC_LOG_LEVEL has no value that silences errors.
DECODERS = re.compile(r"(\x1b\[[0-9;]*m)*\[ERROR\]|libpng error|Bogus Huffman")
WHOLE = jpeg(picture(200, 300), subsampling=2)


def rows(run: Path) -> list[tuple[str, str]]:
    """What quarantine.csv says, without the steps."""
    with (run / "quarantine.csv").open() as file:
        return [(row["image"], row["reason"]) for row in csv.DictReader(file)]


def as_text(path: Path) -> None:
    path.write_text("not an image")


def as_empty(path: Path) -> None:
    path.write_bytes(b"")


def as_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def as_broken(path: Path) -> None:
    path.write_bytes(undecodable(picture(48, 60)))


def as_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


SPOILT = {
    as_text: "is no JPEG or PNG image",
    as_empty: "is empty",
    as_truncated: "is cut off",
    as_broken: "is damaged",
    as_dangling: "cannot be read (No such file or directory)",
}


def test_a_run_goes_on(tmp_path: Path) -> None:
    """Five bad files of 24, in training and in evaluations: each named with its reason, and the run ends."""
    data, run = flat_folder(tmp_path / "data", 24), tmp_path / "run"
    expected = []
    for index, (spoil, said) in enumerate(SPOILT.items()):
        path = data / f"{3 * index:02}.jpg"
        spoil(path)
        expected.append((str(path), said))
    (data / "moving.gif").write_bytes(b"GIF89a")
    ended = succeed(
        *PRETRAIN, "--steps", "6", "--evaluate-every", "3", "--max-bad-share", "0.3", "--data", data, "--out", run,
        cwd=tmp_path,
    )  # fmt: skip
    assert sorted(rows(run)) == expected
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["quarantined"] == 5
    assert json.loads((run / "result.json").read_text())["quarantined"] == 5
    spoken = [line for line in ended.stderr.splitlines() if line.strip() and not DECODERS.match(line)]
    assert all(
        line.startswith(("using ", "data ", "data: ", "loading by ", "run: step ", f"{run}: ")) for line in spoken
    ), spoken
    assert "data: 1 file of another format (.gif) passed over; fastselfie prepare converts it" in spoken
    told = [line for line in spoken if line.startswith(f"{run}: going on without {data}/")]
    assert sum(1 + int((re.findall(r" and (\d+) more", line) or [0])[0]) for line in told) == 5
    assert told[-1].endswith("; 5 in quarantine.csv")


def test_two_processes_and_a_killed_run_are_as_one(tmp_path: Path) -> None:
    """Bad files met by either process, before and after a checkpoint: the same steps, figures and quarantine."""
    data = flat_folder(tmp_path / "data", 24)
    for index, spoil in ((2, as_broken), (9, as_truncated), (20, as_dangling)):
        spoil(data / f"{index:02}.jpg")
    command = (
        *PRETRAIN, "--data", "data", "--held-out", "4", "--steps", "8", "--evaluate-every", "2", "--checkpoint-every",
        "2", "--max-bad-share", "0.3",
    )  # fmt: skip
    succeed(*command, "--micro-batch-size", "4", "--out", "reference", cwd=tmp_path)
    succeed(*command, "--out", "run", cwd=tmp_path, processes=2)
    assert_equal_runs(tmp_path / "run", tmp_path / "reference")
    killed = tmp_path / "killed"
    stop_at(5, signal.SIGKILL, *command, "--micro-batch-size", "4", "--out", killed, run=killed)
    assert 4 <= checkpoints(killed)[-1] < 8
    succeed(*command, "--micro-batch-size", "4", "--out", "killed", cwd=tmp_path)
    assert_equal_runs(tmp_path / "killed", tmp_path / "reference")
    for run in ("run", "killed"):
        assert (tmp_path / run / "quarantine.csv").read_text() == (tmp_path / "reference/quarantine.csv").read_text()


def test_too_many_end_it_and_nothing_is_lost(tmp_path: Path) -> None:
    """One of 24 is more than the default share. With a larger one it goes on, to the end that it would have had."""
    data, options = flat_folder(tmp_path / "data", 24), ("--held-out", "0", "--steps", "6", "--data", "data")
    as_broken(data / "07.jpg")
    succeed(*PRETRAIN, *options, "--max-bad-share", "0.1", "--out", "reference", cwd=tmp_path)
    first = next(start // 8 for start in range(0, 24, 8) if 7 in epoch_order(0, 0, 24)[start : start + 8])
    ended = fastselfie(*PRETRAIN, *options, "--out", "run", cwd=tmp_path)
    assert ended.returncode == 2
    said = "fastselfie: --max-bad-share 0.01: 1 of 24 images cannot be used (the first: data/07.jpg is damaged; all: "
    assert [line for line in ended.stderr.splitlines() if line.startswith(said)]
    assert checkpoints(tmp_path / "run") == [first + 1]
    assert rows(tmp_path / "run") == [("data/07.jpg", "is damaged")]
    succeed(*PRETRAIN, *options, "--max-bad-share", "0.1", "--out", "run", cwd=tmp_path)
    assert_equal_runs(tmp_path / "run", tmp_path / "reference")
    assert (tmp_path / "run/quarantine.csv").read_text() == (tmp_path / "reference/quarantine.csv").read_text()


def test_a_test_image_that_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 6)):
        for name in "ab":
            flat_folder(tmp_path / "data" / part / name, count)
    as_broken(tmp_path / "data/val/a/03.jpg")
    succeed(*FINETUNE, "--data", "data", "--max-bad-share", "0.1", "--out", "run", cwd=tmp_path)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["test_images"], result["tested_images"], result["quarantined"]) == (12, 11, 1)
    assert (result["test_accuracy"] * 11) % 1 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("crop", ["pad", "resized"])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_another_takes_its_place_and_nothing_else_changes(crop: str, prefetch: int, tmp_path: Path) -> None:
    """Under the same keys, with the label of the image that is seen. Two bad files in one batch, met again."""
    folder = [(f"{i}.jpg", jpeg(picture(40, 48, i))) for i in range(12)]
    listed = write(tmp_path, folder, labels=range(12))
    view = View(size=32, crop=crop, flip=True)  # type: ignore[arg-type]
    requests = [(start, start + 6) for start in range(0, 36, 6)]
    whole = pipeline(listed, view, batch=6)
    good = [whole.batch(*request) for request in requests]
    order = epoch_order(3, 0, 12).tolist()
    bad = {order[1], order[4]}
    as_broken(listed.path(order[1]))
    as_text(listed.path(order[4]))
    source = pipeline(listed, view, batch=6, prefetch=prefetch)
    source.announce(requests)
    met = 0
    for request, expected in zip(requests, good, strict=True):
        batch = source.batch(*request)
        assert torch.equal(batch.sample_B, expected.sample_B)
        assert torch.equal(batch.epoch_B, expected.epoch_B)
        for place, sample in enumerate(batch.sample_B.tolist()):
            seen = int(batch.labels_B[place])
            assert seen not in bad
            assert (seen == sample) == (sample not in bad)
            assert torch.equal(batch.pixels[place], expected.pixels[place]) == (sample not in bad)
        met += len(bad & set(batch.sample_B.tolist()))
        names = {listed.name(index) for index in bad & set(batch.sample_B.tolist())}
        assert names <= {image.name for image in batch.refused} <= {listed.name(index) for index in bad}
    assert met == 6  # two in each of three epochs


def test_a_disk_that_is_gone_ends_it(tmp_path: Path) -> None:
    listed = write(tmp_path, [(f"{i}.jpg", jpeg(picture(40, 48, i))) for i in range(40)])
    for path in tmp_path.iterdir():
        path.unlink()
    source = pipeline(listed, View(size=32), batch=20, threads=16)
    with pytest.raises(
        LocalError, match=r"cannot be read \(No such file or directory\), and so it is with 10 more for a"
    ):
        source.batch(0, 20)


class Unsteady(Files):
    """Files of a disk whose every first ``failures`` reads of an image fail."""

    failures = 0
    error = OSError()

    def read(self, index: int) -> bytes:
        path = self.path(index).with_suffix(".tries")
        tries = int(path.read_text()) if path.exists() else 0
        path.write_text(str(tries + 1))
        if tries < self.failures:
            raise self.error
        return super().read(index)


@pytest.mark.parametrize("failures", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), FileNotFoundError(2, "No such file")])
def test_a_read_that_fails_is_tried_three_times(error: OSError, failures: int, tmp_path: Path) -> None:
    listed = write(tmp_path, [(f"{i}.jpg", jpeg(picture(40, 48, i))) for i in range(4)])
    unsteady = Unsteady(root=listed.root, names=listed.names, labels_S=listed.labels_S)
    Unsteady.failures, Unsteady.error = failures, error
    reader = Reader(unsteady, threads=1)
    if failures < 3:
        assert reader.read(2).tobytes() == listed.path(2).read_bytes()
    else:
        with pytest.raises(BadImage, match=rf"cannot be read \({error.strerror}\)"):
            reader.read(2)


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
        (WHOLE[:2] + b"\xff\xd8\xff" + WHOLE[-2:], "is damaged (its header)"),
        (WHOLE.replace(b"\x00\xc8\x01\x2c", b"\x00\x00\x01\x2c", 1), "is damaged (its header)"),
        (
            WHOLE.replace(b"\x00\xc8\x01\x2c", b"\xff\xff\xff\xff", 1),
            "has 65535 x 65535 pixels, more than the 134217728 that are read",
        ),
        (png(picture(9, 9)).replace(b"IHDR", b"IHDX"), "is damaged (its header)"),
    ],
)
def test_what_the_bytes_alone_tell(data: bytes, expected: str | None) -> None:
    assert fault(data) == expected


def test_sizes_at_the_ends_of_what_is_read() -> None:
    assert sides(WHOLE) == (200, 300)
    assert sides(png(picture(9, 7))) == (9, 7)
    for data in (b"", b"GIF89a" + bytes(100), WHOLE[:3], png(picture(9, 7))[:23]):
        assert sides(data) is None
    assert fault(jpeg(picture(1, 1))) is fault(png(picture(1, 1))) is size_fault(1 << 13, 1 << 14) is None
    assert size_fault((1 << 27) + 1, 1) == "has 134217729 x 1 pixels, more than the 134217728 that are read"
    assert size_fault(0, 9) == size_fault(9, 0) == "is damaged (its header)"
    check_bytes(1 << 30)
    with pytest.raises(BadImage, match="has 1073741825 bytes, more than the 1073741824 that are read"):
        check_bytes((1 << 30) + 1)


def decoded(data: bytes, *, at: float | None = None) -> bytes:
    """A plain view; or of a random resized crop of the smallest area, ``at`` 0 of the image's top to 1 of its end."""
    view = View(size=32) if at is None else View(size=32, crop="resized")
    draws = flip = None
    if at is not None:
        draws, flip = np.full((1, DRAWS), 0.5), np.zeros(1, dtype=np.int32)
        draws[0, :ATTEMPTS], draws[0, ROW] = 0, at
    decoder = DaliDecoder(view, batch=1, threads=1, device=CPU)
    contents = [np.frombuffer(data, dtype=np.uint8)]
    decoder.schedule(Encoded(data=contents, draws=draws, flip=flip))
    return images_of(decoder.take()).tobytes()


@pytest.mark.parametrize("told", ["nvImageCodec failure: '#8'", "CUDA error: an illegal memory access", "bad_alloc"])
@pytest.mark.parametrize("at", [None, 0.5])
def test_what_fails_whatever_the_image_is_no_images_fault(
    told: str, at: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would put good images into quarantine, and look at each of them first."""
    taken = []

    def take(runner: GraphRunner) -> None:
        taken.append(runner)
        raise RuntimeError(told)

    monkeypatch.setattr(GraphRunner, "take", take)
    with pytest.raises(RuntimeError, match=f"^DALI fails whatever the image: {re.escape(told)}"):
        decoded(WHOLE, at=at)
    assert len(taken) == 2


def test_a_fault_of_a_kernel_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one batch alone; images by themselves decode."""
    take = GraphRunner.take
    for told, kind, said in (
        ("an illegal memory access was encountered", RuntimeError, "DALI failed, though each file of the batch"),
        ("CUDA allocation failed", LocalError, "--prefetch: decoding so many images at once"),
        ("out of memory", LocalError, "--prefetch: decoding so many images at once"),
    ):
        errors = [RuntimeError(told)]

        def take_or_fail(runner: GraphRunner, errors: list[RuntimeError] = errors) -> torch.Tensor:
            if errors:
                raise errors.pop()
            return take(runner)

        monkeypatch.setattr(GraphRunner, "take", take_or_fail)
        with pytest.raises(kind, match=said):
            decoded(WHOLE)


@pytest.mark.parametrize("kept", [100, 700, len(WHOLE) // 2, len(WHOLE) - 200])
def test_a_truncated_jpeg_is_refused(kept: int) -> None:
    """Not filled up with grey, as other decoders do."""
    with pytest.raises(Undecodable):
        decoded(WHOLE[:kept])


def test_a_truncated_jpeg_of_which_a_part_is_wanted() -> None:
    """A window above the gap is what it is of the whole file; one that reaches into it is refused."""
    part = WHOLE[: len(WHOLE) // 2]
    assert decoded(part, at=0.0) == decoded(WHOLE, at=0.0)
    with pytest.raises(Undecodable):
        decoded(part, at=0.999)


def test_only_the_end_mark_missing() -> None:
    """Refused where the last rows are wanted, though no pixel is missing."""
    assert decoded(WHOLE[:-2], at=0.5) == decoded(WHOLE, at=0.5)
    with pytest.raises(Undecodable):
        decoded(WHOLE[:-2])


@pytest.mark.parametrize("data", [jpeg(picture(200, 300), progressive=True), png(picture(200, 300))])
def test_other_truncated_files_are_refused_wherever_the_window_is(data: bytes) -> None:
    for at in (None, 0.0, 0.999):
        with pytest.raises(Undecodable):
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
