"""A pass of `fastselfie prepare` that goes on where a disk has damaged what it had noted."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines.prepare import open_encoded, prepare
from fastselfie.pipelines.prepare_result import Prepared
from fastselfie.pipelines.shrinking import Shrinking
from tests.command import contents
from tests.photographs import jpeg, noise, write

SHRINKING = Shrinking(size=16, side="shorter", quality=90)
DAMAGES = {"nothing": b"", "zeros": bytes(100), "a list": b"[]", "depth": b"[" * 100_000, "another": b'{"name": 1}'}


class Stopped(Exception):  # noqa: N818 (it is no error)
    pass


def packed(root: Path, to: str, stop_at: int | None = None) -> Prepared:
    """Of the images below ``root``, one a shard; up to ``stop_at`` of them."""

    def progress(done: int, _: int) -> None:
        if done == stop_at:
            raise Stopped

    source = open_encoded(str(root / "images"))
    return prepare(source, root / to, shrinking=SHRINKING, shard_bytes=1, workers=1, progress=progress)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Two shards of three are finished."""
    write(tmp_path / "images", [(f"{index}.jpg", jpeg(noise(20, 20, index))) for index in range(3)])
    with pytest.raises(Stopped):
        packed(tmp_path, "begun", stop_at=3)
    return tmp_path


def test_a_shard_of_which_what_is_known_is_damaged_is_made_again(begun: Path) -> None:
    packed(begun, "whole")
    state = begun / "begun" / "unfinished"
    for name in ("train-000000.json", "train-000001.json", "train-000001.npy"):
        kept = (state / name).read_bytes()
        for damage in DAMAGES.values():
            (state / name).write_bytes(damage)
            with pytest.raises(Stopped):
                packed(begun, "begun", stop_at=3)
            assert (state / name).read_bytes() == kept
    packed(begun, "begun")
    assert contents(begun / "begun") == contents(begun / "whole")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_plan_that_is_damaged_is_named(damage: str, begun: Path) -> None:
    (begun / "begun" / "unfinished" / "pass.json").write_bytes(DAMAGES[damage])
    with pytest.raises(UserError, match=r"^DST .*begun: (unfinished/pass.json is damaged; delete|was packed with)"):
        packed(begun, "begun")
