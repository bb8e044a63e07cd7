"""What the tests' interpreter keeps of a type is what Triton itself makes of it, and no launch leaves it patched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402 (after what may skip)

from fastselfie.kernels.dispatch import interpreted  # noqa: E402
from tests import quick_interpreter as quick  # noqa: E402

pytestmark = pytest.mark.skipif(not interpreted(), reason="kernels are compiled here")
SCALARS = [tl.int1, tl.int32, tl.int64, tl.float16, tl.bfloat16, tl.float32, tl.float64]


@triton.jit  # type: ignore[untyped-decorator]
def _doubled(x: Any) -> Any:
    return x + x


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(x: Any, y: Any, N: tl.constexpr) -> None:
    """y = sum of 2 x[i] * i; ``tl.sum`` is a function of the language that calls others of its own."""
    i = tl.arange(0, N)
    tl.store(y, tl.sum(_doubled(tl.load(x + i)) * i, axis=0))


@pytest.mark.parametrize("scalar", [*SCALARS, *(tl.pointer_type(scalar) for scalar in SCALARS)], ids=str)
@pytest.mark.parametrize("shape", [[1], [16], [8, 4], [tl.constexpr(2), 64, tl.constexpr(1)]], ids=str)
def test_types_are_those_of_triton(scalar: Any, shape: list[Any]) -> None:
    for _ in range(2):  # made, and kept
        kept, made = tl.block_type(scalar, shape), tl.block_type.__new__(tl.block_type)
        quick._make_block_type(made, scalar, shape)
        assert vars(kept).keys() == vars(made).keys()
        assert (kept.name, kept.numel, list(kept.shape), kept.scalar) == (
            made.name, made.numel, list(made.shape), made.scalar,
        )  # fmt: skip
        assert quick._numpy_dtype(kept) == quick._find_numpy_dtype(kept)
        ours, theirs = tl.tensor(None, kept), tl.tensor.__new__(tl.tensor)
        quick._make_tensor(theirs, None, kept)
        assert vars(ours).keys() == vars(theirs).keys()
        assert [size.value for size in ours.shape] == [size.value for size in theirs.shape]
        assert (ours.numel.value, ours.dtype, ours.type) == (theirs.numel.value, theirs.dtype, theirs.type)
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(scalar, [3])


def test_launches_end_as_they_began() -> None:
    x, y = torch.arange(16.0), torch.zeros(1)
    for _ in range(2):
        _kernel[(1,)](x, y, N=16)
        assert y.item() == (2 * np.arange(16.0) ** 2).sum()
        assert tl.core.is_builtin(tl.load)
        assert tl.core.is_builtin(tl.tensor.__add__)
