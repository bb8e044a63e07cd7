"""Cutting images into patches and joining maps, against slices."""

from __future__ import annotations

import pytest
import torch

from fastselfie.models.patches import cut, join


@pytest.mark.parametrize(("grid", "side"), [(2, 3), (4, 8), (7, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cut_and_join(grid: int, side: int, layout: torch.memory_format) -> None:
    images = torch.randn(3, 5, grid * side, grid * side).contiguous(memory_format=layout)
    patches = cut(images, grid)
    assert patches.shape == (3 * grid**2, 5, side, side)
    assert patches.is_contiguous(memory_format=torch.channels_last)
    for index, patch in enumerate(patches):
        image, place = divmod(index, grid**2)
        top, left = side * (place // grid), side * (place % grid)
        assert torch.equal(patch, images[image, :, top : top + side, left : left + side])
    whole = join(patches, grid)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(whole, images)
