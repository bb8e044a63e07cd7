"""The split products, apart from the kernel: their branch for 16-bit operands runs on GPUs alone in bf16.

The interpreter multiplies fp16 as a GPU does, so the branch is run on fp16; that three parts of bf16 make an fp32 value
is shown in PyTorch, which rounds to bf16 as a GPU does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernel_checks import generator, needs_interpreter

triton = pytest.importorskip("triton")
products: Any = pytest.importorskip("fastselfie.kernels.fused.products")
tl: Any = triton.language


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _kernel(a, b, out, ROUGH: tl.constexpr, DOT: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    total = tl.zeros([32, 32], tl.float32)
    if ROUGH:
        total = products.dot_rough(tl.load(a + at), tl.load(b + at), total, DOT, PARTS)
    else:
        total = products.dot(tl.load(a + at), tl.load(b + at).to(DOT), total, PARTS)
    tl.store(out + at, total)


@needs_interpreter
@pytest.mark.parametrize(("rough", "parts", "tolerance"), [(False, 1, 1e-3), (False, 2, 1e-6), (True, 2, 1e-5)])
def test_parts_of_fp16(rough: bool, parts: int, tolerance: float) -> None:
    """One part is off by fp16's rounding: that the test sees it shows that the second part counts."""
    a, b = (torch.randn(32, 32, generator=generator(seed)) for seed in range(2))
    b = b if rough else b.half().float()
    out = torch.empty(32, 32)
    _kernel[(1,)](a, b, out, ROUGH=rough, DOT=tl.float16, PARTS=parts)
    truth = a.double() @ b.double()
    error = ((out.double() - truth).abs().max() / truth.abs().max()).item()
    assert error <= tolerance
    assert parts > 1 or error > 1e-5


def test_parts_of_bf16_make_an_fp32_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "interpreted", lambda: False)
    values = torch.randn(10_000, generator=generator()) * 10.0 ** torch.randint(-6, 6, (10_000,), generator=generator())
    rest, parts = values.clone(), torch.zeros(10_000, dtype=torch.float64)
    for _ in range(products.arithmetic(torch.bfloat16)["PARTS"]):
        part = rest.bfloat16()
        parts += part.double()
        rest -= part.float()
    assert ((parts - values.double()).abs() <= 2.0**-24 * values.double().abs()).all()
