"""The READMEs' examples run as they stand and give what they say, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.photographs import jpeg, picture, write

ROOT = Path(__file__).parents[1]
FOLDERS = "pipelines", "kernels", "bench", "bench/results"
PAGES = "README.md", "CONTRIBUTING.md", *(f"{folder}/README.md" for folder in FOLDERS)


def example(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return str(code)


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, as GitHub has it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in (link for link in links if not link.startswith("https://")):
        file, _, anchor = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.is_file(), link
        assert not anchor or anchor in anchors(there), link


def test_the_operations_by_themselves() -> None:
    names: dict[str, Any] = {}
    exec(example("kernels/README.md"), names)
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
    code = example("README.md").replace("256", "6").replace("250", "4").replace("1010", "1002")
    exec(code.replace("    pass", "    seen.append((images.shape, len(labels)))"), {"seen": seen})
    assert [shape[0] for shape, _ in seen] == [length for _, length in seen] == [6, 6, 4, 3, 6, 6]
    assert {shape[1:] for shape, _ in seen} == {(3, 224, 224)}
