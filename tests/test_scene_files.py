"""Rendered scenes as JPEG files: the same scenes, in the layout that folders of photographs have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastselfie.errors import UserError
from fastselfie.pipelines import scene_files
from fastselfie.pipelines.image_folder import read_image_folder
from fastselfie.pipelines.scene_files import write_scenes
from fastselfie.pipelines.source import Files
from fastselfie.pipelines.synthetic import CLASSES, synthetic_source
from tests.command import assert_refused, fastselfie, succeed

SIZE = 48
JPEG_ERROR = 8  # mean over an image, of 255: quality 92 with halved chroma on noisy scenes; 3.7 to 5.8 seen


def scenes(folder: Path) -> list[int]:
    told: list[int] = []
    write_scenes(folder, size=SIZE, train=30, test=20, seed=0, progress=told.append)
    return told


def test_the_scenes_of_the_source_in_folders_of_their_classes(tmp_path: Path) -> None:
    assert sum(scenes(tmp_path / "scenes")) == 50
    source, expected = read_image_folder(tmp_path / "scenes"), synthetic_source(SIZE, train=30, test=20)
    assert source.classes == tuple(sorted(CLASSES))
    for split, truth in ((source.train, expected.train), (source.test, expected.test)):
        assert isinstance(split, Files)
        assert len(split) == len(truth)
        for index in range(len(split)):
            path = split.path(index)
            number = int(path.stem)
            assert path.parent.name == CLASSES[truth.labels_S[number]]
            with Image.open(path) as image:
                assert image.format == "JPEG"
                error = np.abs(np.asarray(image).astype(int) - truth.images_SHW3[number]).mean()
            assert error < JPEG_ERROR


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scene_files, "render_scenes", stop)
        with pytest.raises(KeyboardInterrupt):
            scenes(tmp_path / "scenes")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "scenes").mkdir()  # an empty one will do
    scenes(tmp_path / "scenes")
    with pytest.raises(UserError, match="is not an empty folder"):
        scenes(tmp_path / "scenes")


def test_the_command(tmp_path: Path) -> None:
    succeed("render", "--out", "scenes", "--size", "16", "--train", "12", "--test", "10", cwd=tmp_path)
    assert len(list(tmp_path.glob("scenes/train/*/*.jpg"))) == 12
    assert len(list(tmp_path.glob("scenes/val/*/*.jpg"))) == 10


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--out"),
        (("--out", "taken"), "--out taken"),
        (("--out", "file/below"), "--out file/below"),
        (("--out", "new", "--size", "4"), "--size 4"),
        (("--out", "new", "--train", "9"), "--train 9"),
        (("--out", "new", "--test", "0"), "--test 0"),
        (("--out", "new", "--seed", "-1"), "--seed -1"),
    ],
)
def test_refusals(words: tuple[str, ...], named: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").touch()
    (tmp_path / "file").touch()
    assert named in assert_refused(fastselfie("render", *words, cwd=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
