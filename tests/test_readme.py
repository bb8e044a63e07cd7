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
    """With batches of 6 in place of 256, on 15 images to train on and 7 to test on."""
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    for part, count in (("train", 15), ("val", 7)):
        write(tmp_path / "imagenet" / part, [(f"{i % 2}/{i}.jpg", jpeg(picture(40, 50, i))) for i in range(count)])
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[torch.Size, int]] = []
    example = LOADER.replace("256", "6").replace("250", "4").replace("1010", "1002")
    exec(example.replace("    pass", "    seen.append((images.shape, len(labels)))"), {"seen": seen})
    assert [shape[0] for shape, _ in seen] == [length for _, length in seen] == [6, 6, 4, 3, 6, 6]
    assert {shape[1:] for shape, _ in seen} == {(3, 224, 224)}
