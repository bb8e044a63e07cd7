"""What is written down of bad images, and what a resumed run takes over of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines.refusal import Refused
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.world import World
from tests.photographs import CPU

ALONE = World(device=CPU)


def refused(name: str, reason: str = "is damaged") -> Refused:
    return Refused(name=name, reason=reason)


def written(folder: Path) -> list[str]:
    return (folder / "quarantine.csv").read_bytes().decode(errors="surrogateescape").splitlines()


def test_each_image_once_with_the_step_it_was_met_by(tmp_path: Path) -> None:
    quarantine = Quarantine(images=10, max_share=0.3)
    quarantine.settle(ALONE, tmp_path, 1)
    assert not (tmp_path / "quarantine.csv").exists()
    quarantine.note([refused("b.jpg"), refused("a, 'b'.jpg", "is empty")])
    quarantine.settle(ALONE, tmp_path, 4)
    quarantine.note([refused("b.jpg"), refused("odd\udcff.jpg")])
    quarantine.settle(ALONE, tmp_path, 8)
    quarantine.settle(ALONE, tmp_path, 9)
    assert written(tmp_path) == [
        "image,reason,step", "\"a, 'b'.jpg\",is empty,4", "b.jpg,is damaged,4", "odd\udcff.jpg,is damaged,8",
    ]  # fmt: skip
    quarantine.check()
    quarantine.note([refused("d.jpg")])
    quarantine.settle(ALONE, tmp_path, 10)
    with pytest.raises(
        UserError, match=r"--max-bad-share 0\.3: 4 of 10 images cannot be used \(the first: a, 'b'\.jpg"
    ):
        quarantine.check()


def test_a_name_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would clear the screen. The file holds the name as it is, also after a resume."""
    name = "a\r\nb\x1b[2J.jpg"
    quarantine = Quarantine(images=10, max_share=0)
    quarantine.note([refused(name)])
    quarantine.settle(ALONE, tmp_path, 1)
    assert capsys.readouterr().err.splitlines()[0].endswith("without a b\\x1b[2J.jpg (is damaged); 1 in quarantine.csv")
    with pytest.raises(UserError, match=r"first: a b\\x1b\[2J\.jpg is damaged"):
        quarantine.check()
    before = (tmp_path / "quarantine.csv").read_bytes()
    assert name.encode() in before
    Quarantine(images=10, max_share=1).restore(ALONE, tmp_path, 1)
    assert (tmp_path / "quarantine.csv").read_bytes() == before


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = Quarantine(images=10, max_share=1)
    for step, name in ((2, "a.jpg"), (4, "odd\udcff.jpg"), (6, "c.jpg")):
        first.note([refused(name)])
        first.settle(ALONE, tmp_path, step)
    resumed = Quarantine(images=10, max_share=1)
    resumed.restore(ALONE, tmp_path, 4)
    assert len(resumed) == 2
    assert written(tmp_path) == ["image,reason,step", "a.jpg,is damaged,2", "odd\udcff.jpg,is damaged,4"]
    resumed.note([refused("odd\udcff.jpg")])
    resumed.settle(ALONE, tmp_path, 5)
    assert len(resumed) == 2
    anew = Quarantine(images=10, max_share=1)
    anew.restore(ALONE, tmp_path, 0)
    assert len(anew) == 0
    assert not (tmp_path / "quarantine.csv").exists()


@pytest.mark.parametrize("text", ["image,reason\na,b\n", "image,reason,step\na,b,many\n", "nothing"])
def test_a_file_that_somebody_changed(text: str, tmp_path: Path) -> None:
    (tmp_path / "quarantine.csv").write_text(text + ("\n1\n" if text == "nothing" else ""))
    with pytest.raises(UserError, match=r"quarantine\.csv: is damaged; delete it"):
        Quarantine(images=10, max_share=1).restore(ALONE, tmp_path, 4)
