"""The README's example of the loader runs as it stands, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.photographs import jpeg, picture, write

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
README = Path(__file__).parents[1] / "README.md"


def test_the_loader_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    write(tmp_path / "imagenet" / "train", [(f"{i % 2}/{i}.jpg", jpeg(picture(40, 50, i))) for i in range(9)])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("256", "6"), names)
    images, labels = names["images"], names["labels"]
    assert images.shape == (6, 3, 224, 224)
    assert images.is_contiguous(memory_format=torch.channels_last)
    # The last request is entries 54 to 59 of epochs of 9: the seventh epoch's first six.
    assert names["batch"].epoch_B.tolist() == [6] * 6
    assert len(set(names["batch"].sample_B.tolist())) == 6
    assert labels.tolist() == [int(names["files"].names[index][0]) for index in names["batch"].sample_B.tolist()]
    assert -2.5 < images.min() < 0 < images.max() < 3
