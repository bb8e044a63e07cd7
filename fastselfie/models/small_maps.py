"""3x3 convolutions of small maps on a CPU: matrix products that leave the padding's zeros out.

On a 4x4 map a padded convolution of stride 2 spends 11 of 36 multiply-adds on zeros, and oneDNN's gradients of it run
at a third of the processor's speed. Here positions that see the same taps are multiplied together: their windows are
copied into rows, and one product does them all. The input's gradient is gathered in the same way, from the outputs
that a position went into, so every number is a single sum in the product's own accuracy.

Shapes: B maps, C input and O output channels, h x w positions, R = B * positions rows, k taps. Maps are channels-last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PositionRun:
    """Neighbouring positions along one axis that gather alike.

    Attributes:
        places: the positions. first: where the first one's window begins in what is gathered from. move: how far the
            window moves from one position to the next. taps: the kernel's entries that meet the window's elements.
    """

    places: slice
    first: int
    move: int
    taps: tuple[int, ...]

    def windows(self, x: Tensor, axis: int) -> Tensor:
        """A view of ``x``: the axis becomes the positions, and a last axis holds their windows."""
        count = len(range(self.places.start, self.places.stop, self.places.step))
        length = (count - 1) * self.move + len(self.taps)
        return x.narrow(axis, self.first, length).unfold(axis, len(self.taps), self.move or 1)


@cache
def output_runs(side: int, stride: int) -> tuple[PositionRun, ...]:
    """How outputs gather from ``side`` inputs: output i reads input stride * i + t - 1 through tap t."""
    outputs = (side - 1) // stride + 1
    seen = [tuple((stride * i + t - 1, t) for t in range(3) if 0 <= stride * i + t - 1 < side) for i in range(outputs)]
    return tuple(_runs(seen, step=1))


@cache
def input_runs(side: int, stride: int) -> tuple[PositionRun, ...]:
    """How inputs' gradients gather from outputs': the same pairs from the other end, windows in order of output."""
    reads: list[list[tuple[int, int]]] = [[] for _ in range(side)]
    for i, t in product(range((side - 1) // stride + 1), range(3)):
        if 0 <= stride * i + t - 1 < side:
            reads[stride * i + t - 1].append((i, t))
    return tuple(_runs([tuple(read) for read in reads], step=stride))


def _runs(seen: list[tuple[tuple[int, int], ...]], step: int) -> Iterator[PositionRun]:
    """Positions ``step`` apart with the same taps, as runs; ``seen`` has each position's (source, tap) pairs."""
    for start in range(step):
        position = start
        while position < len(seen):
            taps, stop = tuple(t for _, t in seen[position]), position + step
            while stop < len(seen) and tuple(t for _, t in seen[stop]) == taps:
                stop += step
            first = seen[position][0][0]
            move = seen[position + step][0][0] - first if stop > position + step else 0
            yield PositionRun(places=slice(position, stop - step + 1, step), first=first, move=move, taps=taps)
            position = stop


class SmallMapConvolution(torch.autograd.Function):
    """(B, C, h, w) and (O, C, 3, 3) to (B, O, h', w'), padding 1; computed in ``dtype``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
        x_BhwC, weight_33CO = x.permute(0, 2, 3, 1).to(dtype), _taps_outermost(weight, dtype).transpose(2, 3)
        B, h, w, _ = x_BhwC.shape
        y_BhwO = x_BhwC.new_empty(B, (h - 1) // stride + 1, (w - 1) // stride + 1, weight.shape[0])
        _gather_products(x_BhwC, weight_33CO, output_runs(h, stride), output_runs(w, stride), y_BhwO)
        ctx.save_for_backward(x_BhwC, weight)
        ctx.stride, ctx.input_dtype = stride, x.dtype
        return y_BhwO.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_BhwC, weight = ctx.saved_tensors
        g_BhwO, (_, h, w, _) = g.permute(0, 2, 3, 1), x_BhwC.shape
        gx = gweight = None
        if ctx.needs_input_grad[0]:
            gx_BhwC, weight_33OC = torch.empty_like(x_BhwC), _taps_outermost(weight, x_BhwC.dtype)
            _gather_products(g_BhwO, weight_33OC, input_runs(h, ctx.stride), input_runs(w, ctx.stride), gx_BhwC)
            gx = gx_BhwC.permute(0, 3, 1, 2).to(ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            gweight_O33C = _weight_gradient(x_BhwC, g_BhwO, output_runs(h, ctx.stride), output_runs(w, ctx.stride))
            gweight = gweight_O33C.permute(0, 3, 1, 2).to(weight.dtype)
        return gx, gweight, None, None


def _taps_outermost(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, C, 3, 3) to contiguous (3, 3, O, C)."""
    return weight.to(dtype).permute(2, 3, 0, 1).contiguous()


def _rows(x_BhwC: Tensor, down: PositionRun, across: PositionRun) -> Tensor:
    """The windows of all positions that are in both runs: (R, k * C)."""
    windows = across.windows(down.windows(x_BhwC, 1), 2).permute(0, 1, 2, 4, 5, 3)
    return windows.reshape(-1, windows.shape[3:].numel())


def _gather_products(
    x_BhwC: Tensor, weight_33CO: Tensor, rows: tuple[PositionRun, ...], columns: tuple[PositionRun, ...], y_BhwO: Tensor
) -> None:
    """Fill ``y_BhwO``: each position is the product of its window with the taps that it sees."""
    O = weight_33CO.shape[3]
    for down, across in product(rows, columns):
        taps = [weight_33CO[t, u] for t, u in product(down.taps, across.taps)]
        place = y_BhwO[:, down.places, across.places]
        place.copy_((_rows(x_BhwC, down, across) @ torch.cat(taps)).view(*place.shape[:3], O))


def _weight_gradient(
    x_BhwC: Tensor, g_BhwO: Tensor, rows: tuple[PositionRun, ...], columns: tuple[PositionRun, ...]
) -> Tensor:
    """(O, 3, 3, C) in fp32 or wider: runs are added up there."""
    O, C = g_BhwO.shape[3], x_BhwC.shape[3]
    total_O33C = g_BhwO.new_zeros(O, 3, 3, C, dtype=torch.promote_types(g_BhwO.dtype, torch.float32))
    for down, across in product(rows, columns):
        g_RO = g_BhwO[:, down.places, across.places].reshape(-1, O)
        taps_O33C = total_O33C[:, down.taps[0] : down.taps[-1] + 1, across.taps[0] : across.taps[-1] + 1]
        taps_O33C += (g_RO.T @ _rows(x_BhwC, down, across)).view(taps_O33C.shape)
    return total_O33C
