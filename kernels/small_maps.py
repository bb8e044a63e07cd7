"""Gradients of 3x3 convolutions of small maps on a CPU: matrix products that leave the padding's zeros out.

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
    taps = ([(stride * i + t - 1, t) for t in range(3)] for i in range(_outputs(side, stride)))
    seen = [tuple((source, t) for source, t in each if 0 <= source < side) for each in taps]
    return tuple(_runs(seen, step=1))


@cache
def input_runs(side: int, stride: int) -> tuple[PositionRun, ...]:
    """How inputs' gradients gather from outputs': the same pairs from the other end, windows in order of output."""
    reads: list[list[tuple[int, int]]] = [[] for _ in range(side)]
    for i, t in product(range(_outputs(side, stride)), range(3)):
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


def input_gradient(g: Tensor, weight: Tensor, h: int, w: int, stride: int) -> Tensor:
    """The gradient of a convolution's input, (B, C, h, w), from that of its output, (B, O, h', w'), and the kernel."""
    gx_BhwC = g.new_empty(g.shape[0], h, w, weight.shape[1])
    rows, columns = input_runs(h, stride), input_runs(w, stride)
    _gather_products(g.permute(0, 2, 3, 1), _taps_outermost(weight), rows, columns, gx_BhwC)
    return gx_BhwC.permute(0, 3, 1, 2)


def weight_gradient(g: Tensor, x: Tensor, stride: int) -> Tensor:
    """The kernel's gradient, (O, C, 3, 3) in fp32 or wider: runs are added up there."""
    g_BhwO, x_BhwC = g.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    (_, h, w, C), O = x_BhwC.shape, g.shape[1]
    total_O33C = g.new_zeros(O, 3, 3, C, dtype=torch.promote_types(g.dtype, torch.float32))
    for down, across in product(output_runs(h, stride), output_runs(w, stride)):
        g_RO = g_BhwO[:, down.places, across.places].reshape(-1, O)
        taps_O33C = total_O33C[:, down.taps[0] : down.taps[-1] + 1, across.taps[0] : across.taps[-1] + 1]
        taps_O33C += (g_RO.T @ _rows(x_BhwC, down, across)).view(taps_O33C.shape)
    return total_O33C.permute(0, 3, 1, 2)


def _outputs(side: int, stride: int) -> int:
    return (side - 1) // stride + 1


def _taps_outermost(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) to contiguous (3, 3, O, C)."""
    return weight.permute(2, 3, 0, 1).contiguous()


def _rows(x_BhwC: Tensor, down: PositionRun, across: PositionRun) -> Tensor:
    """The windows of all positions that are in both runs: (R, k * C)."""
    windows = across.windows(down.windows(x_BhwC, 1), 2).permute(0, 1, 2, 4, 5, 3)
    return windows.reshape(-1, windows.shape[3:].numel())


def _gather_products(
    x_BhwC: Tensor, weight_33CO: Tensor, rows: tuple[PositionRun, ...], columns: tuple[PositionRun, ...], y_BhwO: Tensor
) -> None:
    """Fill ``y_BhwO``: each position is the product of its window with the taps that it meets."""
    O = weight_33CO.shape[3]
    for down, across in product(rows, columns):
        taps = [weight_33CO[t, u] for t, u in product(down.taps, across.taps)]
        place = y_BhwO[:, down.places, across.places]
        place.copy_((_rows(x_BhwC, down, across) @ torch.cat(taps)).view(*place.shape[:3], O))
