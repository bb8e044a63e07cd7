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
