"""Inputs and plain formulas for the tests of the fused trunk.

Shapes: M maps, C and O channels, h x w positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.kernels.dispatch import interpreted
from tests.kernel_checks import DEVICE, generator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "every second map", "window"]


def maps(M: int, C: int, h: int, w: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Channels-last, on `DEVICE`; the channels differ in mean and spread."""
    random = generator(seed)
    shift, spread = torch.randn(C, 1, 1, generator=random), 0.5 + torch.rand(C, 1, 1, generator=random)
    values = torch.randn(M, C, h, w, generator=random) * spread + shift
    return values.to(dtype).to(DEVICE, memory_format=torch.channels_last)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "every second map":
        return x.repeat_interleave(2, dim=0)[::2]
    assert layout == "window"
    h, w = x.shape[2:]
    return F.pad(x, (1, 2, 3, 1), value=1e3)[:, :, 3 : 3 + h, 1 : 1 + w]


def affine(C: int, seed: int = 0) -> Tensor:
    """Slopes of both signs and two that are 0, offsets of both signs, 0 once: fp32 (2, C)."""
    slope, offset = torch.randn(2, C, generator=generator(seed + 100))
    slope[1] = slope[2] = offset[2] = 0
    offset[1] = 0.75
    return torch.stack([slope, offset]).to(DEVICE)


def weights(O: int, C: int, side: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(O, C, side, side, generator=generator(seed + 200)) * (C * side**2) ** -0.5
    return values.to(DEVICE, dtype)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As a kernel's cast does it: the interpreter truncates to bf16."""
    if dtype == torch.bfloat16 and interpreted():
        return (x.float().contiguous().view(torch.int32) & -0x10000).view(torch.float32).to(dtype)
    return x.to(dtype)


def before_relu(x: Tensor, affine_2C: Tensor) -> Tensor:
    """slope * x + offset, of the dtype of ``affine_2C``."""
    return x.to(affine_2C.dtype) * affine_2C[0][:, None, None] + affine_2C[1][:, None, None]


def assert_sums(sums: Tensor, terms: list[Tensor], sizes: list[Tensor], tolerance: float = 1e-6) -> None:
    """``sums``, fp64 (len(terms), C), are those of the terms over all but the channels.

    Args:
        sizes: what the terms' rounding errors are as large as; the sum of these bounds the error.
    """
    C = terms[0].shape[1]
    assert (sums.dtype, sums.shape) == (torch.float64, (len(terms), C))
    for row, term, size in zip(sums, terms, sizes, strict=True):
        expected, bound = term.double().sum(dim=(0, 2, 3)), size.double().abs().sum(dim=(0, 2, 3))
        error = (row - expected).abs()
        assert (error <= tolerance * bound).all(), f"off by {(error / bound).max().item():.1e} of the terms' sizes"
