"""What the operations refuse: each check raises ValueError naming the argument, what was expected and what came.

Checks of shapes, dtypes and devices read nothing from the device. Checks of values do, so they run in the debug mode
alone: with ``FASTSELFIE_DEBUG=1`` in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

DEBUG = os.environ.get("FASTSELFIE_DEBUG", "") not in ("", "0")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def floats(kernel: bool) -> tuple[torch.dtype, ...]:
    """The floating-point dtypes that a kernel takes; plain PyTorch takes fp64 too, for a truth to compare with."""
    return _FLOATS if kernel else (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def expect(
    name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int | str], device: torch.device
) -> None:
    """Raise ValueError unless ``tensor`` is as said; a letter in ``shape`` stands for any size."""
    expect_tensor(name, tensor)
    fits = len(shape) == tensor.dim() and all(
        isinstance(want, str) or want == size for want, size in zip(shape, tensor.shape, strict=False)
    )
    if tensor.dtype in dtypes and fits and tensor.device == device:
        return
    kinds = " or ".join(_short(dtype) for dtype in dtypes)
    raise ValueError(
        f"{name}: expected {kinds} ({', '.join(map(str, shape))}) on {device}, got {_seen(tensor)} on {tensor.device}"
    )


def expect_tensor(name: str, value: object, *shape: str) -> None:
    """Raise ValueError unless ``value`` is a tensor, and where ``shape`` names dimensions, of so many."""
    if isinstance(value, Tensor) and len(shape or value.shape) == value.dim():
        return
    wanted = f" ({', '.join(shape)})" if shape else ""
    got = _seen(value) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"{name}: expected a tensor{wanted}, got {got}")


def expect_within(name: str, values: Tensor, stop: int) -> None:
    """In the debug mode, raise ValueError unless every value is in [0, stop). Reads the values: a synchronisation."""
    if DEBUG and values.numel() and not bool(((values >= 0) & (values < stop)).all()):
        raise ValueError(f"{name}: expected values in [0, {stop}), got {values.min()} to {values.max()}")


def expect_distinct(name: str, values: Tensor) -> None:
    """In the debug mode, raise ValueError unless the values of a row are distinct. Reads them: a synchronisation."""
    if DEBUG and values.numel():
        ordered = values.sort(dim=1).values
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
        require(
            not bool(repeated.any()),
            f"{name}: expected distinct values in each row, row {int(repeated.int().argmax())} repeats one",
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _seen(tensor: Tensor) -> str:
    return f"{_short(tensor.dtype)} ({', '.join(map(str, tensor.shape))})"
