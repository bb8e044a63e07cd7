"""The README's examples run as they stand, and give what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.photographs import jpeg, picture, write

README = Path(__file__).parents[1] / "README.md"
LOADER, OPERATIONS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_operations_by_themselves() -> None:
    names: dict[str, Any] = {}
    exec(OPERATIONS, names)
    pixels, places, patches = (names[name].cpu() for name in ("pixels", "places", "patches"))
    assert patches.shape == (8192, 3, 8, 8)
    row, column = divmod(int(places[3, 5]), 4)
    shown = pixels[3, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].permute(2, 0, 1)
    torch.testing.assert_close(patches[3 * 16 + 5], shown / 255 * 2 - 1)
    assert names["loss"].item() > 0
    assert 0 <= names["right"].item() <= 512 * 4
    assert all(names[name].grad.abs().sum() > 0 for name in "ueh")


def test_the_loader_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    write(tmp_path / "imagenet" / "train", [(f"{i % 2}/{i}.jpg", jpeg(picture(40, 50, i))) for i in range(9)])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(LOADER.replace("256", "6"), names)
    images, labels = names["images"], names["labels"]
    assert images.shape == (6, 3, 224, 224)
    assert images.is_contiguous(memory_format=torch.channels_last)
    # The last request is entries 54 to 59 of epochs of 9: the seventh epoch's first six.
    assert names["batch"].epoch_B.tolist() == [6] * 6
    assert len(set(names["batch"].sample_B.tolist())) == 6
    assert labels.tolist() == [int(names["files"].names[index][0]) for index in names["batch"].sample_B.tolist()]
    assert -2.5 < images.min() < 0 < images.max() < 3
