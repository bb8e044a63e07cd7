"""Memory that comes back: never while anything shares it, and then indeed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastselfie.pipelines.recycled import RecycledMemory

SHARERS: dict[str, Callable[[Tensor], Any]] = {
    "the tensor": lambda tensor: tensor,
    "a view": lambda tensor: tensor[1:, ::2],
    "another dtype": lambda tensor: tensor.view(torch.uint8),
    "a NumPy array": lambda tensor: tensor.numpy()[0],
    "detached": lambda tensor: tensor.detach(),
    "its storage": lambda tensor: tensor.untyped_storage(),
    "a graph of autograd": lambda tensor: (torch.ones(4, 6, requires_grad=True) * tensor).sum(),
    "a DLPack capsule": lambda tensor: tensor.__dlpack__(),
}


@pytest.mark.parametrize("sharer", SHARERS)
def test_memory_is_used_again_only_after_the_last_that_shares_it(sharer: str) -> None:
    memory = RecycledMemory()
    tensor = memory.empty(4, 6, dtype=torch.float32)
    where, held = tensor.data_ptr(), SHARERS[sharer](tensor)
    del tensor
    other = memory.empty(4, 6, dtype=torch.float32)
    assert other.data_ptr() != where
    del held
    again = memory.empty(12, dtype=torch.bfloat16)  # of less it is a part
    assert again.data_ptr() == where
    assert again.shape == (12,)
    assert again.is_contiguous()


def test_memory_that_is_too_small_is_given_up() -> None:
    memory = RecycledMemory()
    memory.empty(4, dtype=torch.uint8)
    assert memory.empty(1000, dtype=torch.int64).fill_(7).sum() == 7000


def test_what_is_kept_is_bounded() -> None:
    memory = RecycledMemory()
    held = [memory.empty(100, dtype=torch.uint8) for _ in range(50)]
    places = {tensor.data_ptr() for tensor in held}
    held.clear()
    kept = [memory.empty(100, dtype=torch.uint8) for _ in range(4)]
    assert {tensor.data_ptr() for tensor in kept} <= places
    assert not memory._free


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_shapes_at_the_edge(shape: tuple[int, ...]) -> None:
    assert RecycledMemory().empty(*shape, dtype=torch.float32).shape == shape
