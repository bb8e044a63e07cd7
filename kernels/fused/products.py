"""Products on tensor cores that are as exact as in fp32.

A tensor core's operands are narrow. One that does not fit is split into parts that do, each part its own product:
against a bf16 operand, which fits as it is, three parts of bf16; of two fp32 operands, two tf32 parts each (11 bits a
part; the product of both rests is below fp32's rounding and left out).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastselfie.kernels.dispatch import interpreted
from fastselfie.kernels.fused.launch import next_power_of_2


@triton.jit
def _halves(x):
    """``x``, fp32, as the nearest tf32 value and the rest, of which tf32 keeps all but the last bits."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def dot(a, b, accumulator, PARTS: tl.constexpr):
    """``accumulator`` + ``a`` @ ``b`` to fp32's accuracy; ``a`` is fp32.

    With PARTS, ``b`` is of a 16-bit dtype and ``a`` is taken as the sum of that many values of it. Else ``b`` is fp32.
    """
    if PARTS > 0:
        for _ in tl.static_range(PARTS):
            part = a.to(b.dtype)
            accumulator = tl.dot(part, b, accumulator)
            a -= part.to(tl.float32)
    else:
        a_high, a_low = _halves(a)
        b_high, b_low = _halves(b)
        accumulator = tl.dot(a_low, b_high, accumulator, input_precision="tf32")
        accumulator = tl.dot(a_high, b_low, accumulator, input_precision="tf32")
        accumulator = tl.dot(a_high, b_high, accumulator, input_precision="tf32")
    return accumulator


@triton.jit
def dot_rough(a, b, accumulator, DOT: tl.constexpr, PARTS: tl.constexpr):
    """The same of two fp32 operands; with PARTS only as exact as a 16-bit result needs: two parts of each."""
    if PARTS > 0:
        a_high, b_high = a.to(DOT), b.to(DOT)
        accumulator = tl.dot((a - a_high.to(tl.float32)).to(DOT), b_high, accumulator)
        accumulator = tl.dot(a_high, (b - b_high.to(tl.float32)).to(DOT), accumulator)
        accumulator = tl.dot(a_high, b_high, accumulator)
    else:
        accumulator = dot(a, b, accumulator, 0)
    return accumulator


def arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """In what products are computed: bf16 features as they are, against three parts; others in tf32.

    Parts of fp16 would end where its small numbers do. The interpreter has no bf16 arithmetic (its products would be
    wrong): there bf16 goes the way of the others.
    """
    if dtype == torch.bfloat16 and not interpreted():
        return {"DOT": tl.bfloat16, "PARTS": 3}
    return {"DOT": tl.float32, "PARTS": 0}


def wide_products() -> bool:
    """Whether the device multiplies 64 rows at a time out of shared memory: Hopper and its successors, not sm_120."""
    return not interpreted() and triton.runtime.driver.active.get_current_target().arch // 10 in (9, 10)


def tile(size: int) -> int:
    """The side of a product's tile that ``size`` fits into."""
    return max(16, next_power_of_2(size))
