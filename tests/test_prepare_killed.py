"""`fastselfie prepare` is killed at any moment and goes on; the result is that of an undisturbed pass, to the byte."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from fastselfie.cli import status
from fastselfie.pipelines import prepare
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.shrinking_process import ProcessEndedError, ShrinkingProcess
from tests.command import TIMEOUT_S, Process, as_in_a_terminal, assert_refused, contents, end, fastselfie, start
from tests.packing import members, refused
from tests.photographs import jpeg, noise, png, write


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that give several shards of a megabyte, and damaged ones among them. The last four take a third of a
    second each: time for who is to stop a pass while it writes a shard."""
    folder = tmp_path_factory.mktemp("many") / "source"
    image = noise(300, 450)
    for number in range(34):
        data = jpeg(np.roll(image, number * 31, axis=1), quality=90)
        write(folder / "train" / "ab"[number // 20], [(f"{number:02}.jpg", data if number % 9 else data[:-500])])
    large = png(np.full((7000, 7000, 3), 128, np.uint8), compress_level=1)
    write(folder / "train" / "b", [(f"{number}.png", large) for number in range(34, 38)])
    write(folder / "val", [("a/0.jpg", jpeg(noise(300, 300)))])
    return folder


SHARDS = 6
OPTIONS = ("--size", "224", "--shard-mb", "1", "--quality", "96")


def pack(many: Path, folder: Path, *options: str) -> None:
    """The whole of it, in this process."""
    assert status(["prepare", str(many), str(folder), *OPTIONS, *options]) == 0


@pytest.fixture(scope="module")
def undisturbed(many: Path) -> Path:
    folder = many.parent / "undisturbed"
    pack(many, folder, "--workers", "1")
    assert len(list(folder.glob("train-*.tar"))) == SHARDS
    assert all(path.stat().st_size <= 1 << 20 for path in folder.glob("train-*.tar"))
    return folder


def test_keys_go_on_over_shards(undisturbed: Path) -> None:
    keys, index = [], np.load(undisturbed / "train.npy")
    for number, path in enumerate(sorted(undisturbed.glob("train-*.tar"))):
        names = [name for name in members(path) if name.endswith(".jpg")]
        assert (index["shard"] == number).sum() == len(names)
        keys += names
    assert keys == [f"{key:09d}.jpg" for key in range(34)]
    assert (index["label"] == 1).sum() == sum(1 for number in range(20, 38) if number % 9 or number > 34)


def test_the_number_of_processes_changes_nothing(many: Path, undisturbed: Path) -> None:
    folder = many.parent / "three"
    pack(many, folder, "--workers", "3")
    assert contents(folder) == contents(undisturbed)


def children(process: Process) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def workers(process: Process) -> list[int]:
    """The processes that shrink images, known by how multiprocessing starts them."""
    return [number for number in children(process) if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_asleep(number: int) -> bool:
    """Whether a process has not been at work for a tenth of a second."""

    def ticks() -> list[str]:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = ticks()
    time.sleep(0.1)
    return ticks() == before


def assert_gone(numbers: Iterable[int]) -> None:
    wait_for(lambda: not any(Path(f"/proc/{number}").exists() for number in numbers))


def in_mid_shard(folder: Path, finished: int) -> Callable[[], bool]:
    """Whether so many shards are finished, not all of the split, and another is being written."""

    def there() -> bool:
        state = folder / "unfinished"
        open_shard = state / "shard.tar"
        return (
            (state / f"train-{finished - 1:06d}.json").exists()
            and not (state / f"train-{SHARDS - 1:06d}.json").exists()
            and open_shard.exists()
            and open_shard.stat().st_size > 0
        )

    return there


def unhurried() -> None:
    """As in a terminal, and behind whoever watches it: it must not be over before it is held."""
    as_in_a_terminal()
    os.nice(19)


def begin(many: Path, folder: Path, finished: int) -> Process:
    """A pass that is held (SIGSTOP) while it writes a shard; SIGCONT lets it go on."""
    process = start("prepare", many, folder, *OPTIONS, "--workers", "2", cwd=many.parent, before=unhurried)
    in_a_shard = in_mid_shard(folder, finished)

    def there() -> bool:
        """With its workers: one that goes on may find as many shards finished before it has any."""
        return in_a_shard() and len(workers(process)) == 2

    while True:
        wait_for(lambda: there() or process.poll() is not None)
        assert process.poll() is None, "the pass was over too soon"
        process.send_signal(signal.SIGSTOP)
        if there():
            return process
        process.send_signal(signal.SIGCONT)


def test_killed_in_mid_shard_it_goes_on(many: Path, undisturbed: Path, capsys: Any) -> None:
    folder = many.parent / "killed"
    for finished in (1, 2):
        process = begin(many, folder, finished)
        started = workers(process)
        assert len(started) == 2
        process.kill()
        end(process)
        assert_gone(started)  # orphans by now: they end by themselves
        assert (folder / "unfinished" / "shard.tar").stat().st_size > 0
        assert not (folder / "dataset.json").exists()
    untouched = (folder / "train-000000.tar").stat()
    assert "was packed with --quality 96, not --quality 80" in refused(
        capsys, many, folder, *OPTIONS, "--quality", "80"
    )
    pack(many, folder, "--workers", "1")
    assert "34 images in train and 1 images in val" in capsys.readouterr().out
    assert contents(folder) == contents(undisturbed)
    assert (folder / "train-000000.tar").stat().st_ino == untouched.st_ino


def test_ctrl_c_leaves_no_process(many: Path, undisturbed: Path, capsys: Any) -> None:
    folder = many.parent / "interrupted"
    process = begin(many, folder, 1)
    started = children(process)
    assert "another process is packing into it" in refused(capsys, many, folder, *OPTIONS)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    process.send_signal(signal.SIGCONT)
    ended = end(process)
    assert ended.returncode == 130
    assert ended.stderr == f"{folder}: stopped; the same command goes on after the last finished shard\n"
    assert_gone(started)
    assert not (folder / "unfinished" / "shard.tar").exists()
    pack(many, folder)
    assert contents(folder) == contents(undisturbed)


def no_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def few_open_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def test_an_error_of_a_process_reaches_who_asked_it() -> None:
    process = ShrinkingProcess(Shrinking(size=64, side="shorter", quality=90))
    data = jpeg(noise(100, 100))
    nonsense: Any = 7
    with pytest.raises(TypeError, match="not iterable") as caught:
        process.shrink(nonsense)
    assert "in _serve" in caught.value.__notes__[0]
    ((shrunk, copied, reason),) = process.shrink([data])
    assert shrunk is not None
    assert (copied, reason) == (False, "")
    process.stop()
    with pytest.raises(ProcessEndedError):
        process.shrink([data])


def test_processes_are_killed_in_the_middle_of_their_results(many: Path, undisturbed: Path) -> None:
    folder = many.parent / "lost"
    process = begin(many, folder, 1)
    started = workers(process)
    wait_for(lambda: all(is_asleep(number) for number in started))  # with results that nobody takes
    for number in started:  # both: one may have given its last result, and nobody would miss it
        os.kill(number, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    line = assert_refused(end(process))
    assert "a process was killed, perhaps for want of memory" in line
    assert str(many) in line
    pack(many, folder)
    assert contents(folder) == contents(undisturbed)


def test_what_else_may_happen_to_a_pass(
    many: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A process cannot be started, the disk is full at the end or in a shard, a finished one is lost: each costs some
    time alone."""
    folder = many.parent / "troubled"
    too_many = (*OPTIONS, "--workers", "50")
    line = assert_refused(fastselfie("prepare", many, folder, *too_many, cwd=many.parent, before=few_open_files))
    assert re.search(r"--workers 50: 1?\d were started, and no more \(Too many open files\); take fewer", line)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "complete", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        assert "cannot be written (No space left on device); make room" in refused(capsys, many, folder, *OPTIONS)
    (folder / "train-000001.tar").unlink()
    kept = (folder / "train-000000.tar").stat()
    line = assert_refused(fastselfie("prepare", many, folder, *OPTIONS, cwd=many.parent, before=no_large_files))
    assert f"DST {folder}: cannot be written (File too large); make room" in line
    assert not (folder / "unfinished" / "shard.tar").exists()
    pack(many, folder)
    assert contents(folder) == contents(undisturbed)
    assert (folder / "train-000000.tar").stat().st_ino == kept.st_ino
