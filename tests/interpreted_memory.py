"""What an interpreted kernel does to memory: a watch that it stays in bounds, and a record of what it would touch.

Both stand in for the loads and stores of Triton's interpreter, so neither can be used where kernels are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Addresses = NDArray[np.uint64]


@contextmanager
def in_bounds() -> Iterator[None]:
    """Raise IndexError where a kernel loads from or stores to memory that belongs to none of its arguments."""
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, prepare = builder.create_masked_load, builder.create_masked_store, executor._init_args_hst
    starts, stops = np.zeros(0, np.uint64), np.zeros(0, np.uint64)

    def preparing(self: Any, *args: Any) -> Any:
        nonlocal starts, stops
        prepared = prepare(self, *args)
        spans = sorted(_span(tensor) for tensor in _tensors(prepared))
        starts, stops = (np.array(ends, np.uint64) for ends in zip(*spans, strict=True))
        stops = np.maximum.accumulate(stops)  # arguments may be views of one tensor
        return prepared

    def check(pointers: Any, mask: Any, what: str) -> None:
        used = pointers.data[mask.data.astype(bool)]  # of one shape; masks passed to functions come as integers
        behind = np.searchsorted(starts, used, side="right")
        size = np.uint64(pointers.get_element_ty().primitive_bitwidth // 8)
        if used.size and not ((behind > 0) & (used + size <= stops[behind - 1])).all():
            raise IndexError(f"a kernel's {what} lies outside its arguments")

    def loading(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, "load")
        return load(self, pointers, mask, *rest)

    def storing(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, "store")
        return store(self, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", loading)
        patch.setattr(builder, "create_masked_store", storing)
        patch.setattr(executor, "_init_args_hst", preparing)
        yield


def _tensors(prepared: tuple[list[Any], dict[str, Any]]) -> list[torch.Tensor]:
    values = [*prepared[0], *prepared[1].values()]
    return [value for value in values if isinstance(value, torch.Tensor) and value.numel()]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first element and of what lies behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


class Memory:
    """A tensor of any size without memory: the kernel gets an address, which no other memory here comes near."""

    def __init__(self, number: int, dtype: torch.dtype, value: float) -> None:
        self.dtype, self.value, self.number = dtype, value, number
        self.loaded: set[int] = set()
        """Offsets, in elements, of what was loaded."""
        self.stored: set[int] = set()

    def data_ptr(self) -> int:
        return (self.number + 1) << 48

    def note(self, pointers: Any, mask: Any, into: set[int]) -> None:
        bytes_in = pointers.data[mask.data.astype(bool)] - np.uint64(self.data_ptr())
        into.update(int(offset) for offset in bytes_in // np.uint64(self.dtype.itemsize))


def touched(
    kernel: Any, program: tuple[int, int, int], arguments: dict[str, Any], *, programs: tuple[int, int, int]
) -> dict[str, Memory]:
    """Run one program of ``kernel`` without memory and say what it would touch.

    Args:
        arguments: the kernel's; for a tensor its dtype, and what each of its loads gives: ``(torch.float32, 1.0)``.
        programs: of the grid.
    """
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    memories = {
        name: Memory(number, *value)
        for number, (name, value) in enumerate(arguments.items())
        if isinstance(value, tuple)
    }
    by_number = {memory.number: memory for memory in memories.values()}

    def owner(pointers: Any) -> Memory:
        (number,) = {int(address) for address in np.unique((pointers.data + np.uint64(1 << 47)) >> np.uint64(48))}
        return by_number[number - 1]

    def loading(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        memory = owner(pointers)
        memory.note(pointers, mask, memory.loaded)
        kind = pointers.get_element_ty()
        found = np.where(mask.data, memory.value, 0 if other is None else other.data)
        return interpreter.TensorHandle(found.astype(interpreter._get_np_dtype(kind)), kind)

    def storing(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
        memory = owner(pointers)
        memory.note(pointers, mask, memory.stored)

    def only(self: Any, x: int, y: int, z: int) -> None:
        self.grid_dim, self.grid_idx = programs, program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", loading)
        patch.setattr(builder, "create_masked_store", storing)
        patch.setattr(builder, "set_grid_idx", only)
        patch.setattr(executor, "_init_args_hst", lambda self, args, kwargs: (args, kwargs))
        patch.setattr(executor, "_restore_args_dev", lambda *_: None)
        kernel[(1, 1, 1)](**arguments | memories)
    return memories
