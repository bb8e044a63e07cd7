"""ReLU's gradient, from the map that batch norm was given: an operator that torch.compile's Inductor fuses as its own.

Where autograd is left to say which elements ReLU let through, a compiled graph keeps that from the forward pass, a byte
an element or the whole activation, and reads it twice. An operator's inside is not seen when a graph is cut in two, so
only its arguments are kept, and batch norm's backward reads the map anyway. To be imported where a graph is traced:
Inductor takes as long to import as torch.

Shapes: B maps, C channels, h x w positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._inductor.ir import Pointwise
from torch._inductor.lowering import register_lowering
from torch._inductor.virtualized import ops

from fastselfie.kernels.operator import operator


@operator("let_through")
def let_through(g: Tensor, x: Tensor, slope_C: Tensor, offset_C: Tensor) -> Tensor:
    """``g`` where slope * x + offset is above 0, elsewhere 0: (B, C, h, w) in the coefficients' dtype."""
    z = x.to(slope_C.dtype) * slope_C[:, None, None] + offset_C[:, None, None]
    return torch.where(z > 0, g.to(z.dtype), 0.0)


@torch.library.register_fake("fastselfie::let_through")  # type: ignore[untyped-decorator]
def _(g: Tensor, x: Tensor, slope_C: Tensor, offset_C: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=slope_C.dtype)


def _lowered(g: Any, x: Any, slope_C: Any, offset_C: Any) -> Any:
    """`let_through` as Inductor's own operations, which it puts into the kernels around them."""
    dtype = slope_C.get_dtype()
    for coefficient in (slope_C, offset_C):
        coefficient.realize()  # else every element would read what it is made of
    load_g, load_x, load_slope, load_offset = (each.make_loader() for each in (g, x, slope_C, offset_C))

    def element(index: Sequence[Any]) -> Any:
        channel, zero = index[1:2], ops.constant(0.0, dtype)
        z = ops.add(ops.mul(ops.to_dtype(load_x(index), dtype), load_slope(channel)), load_offset(channel))
        return ops.where(ops.gt(z, zero), ops.to_dtype(load_g(index), dtype), zero)

    return Pointwise.create(device=x.get_device(), dtype=dtype, inner_fn=element, ranges=list(x.get_size()))


register_lowering(let_through, type_promotion_kind=None)(_lowered)
