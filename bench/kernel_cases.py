"""What is timed: each operation in recipes' shapes, with random inputs, and the bytes that it has to move.

Bytes are those of one pass over the operation's arguments and results: each input read once, each output written once,
whatever a version keeps in between. Batch norm needs two passes over the maps, so `channel_sums` and `patch_tokens`
read them once each, and so does each of the two sums that the gradient of the maps stands on and that gradient itself.

Letters as in `bench.recipe_shapes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.recipe_shapes import Shape, shape_of

EPS = 1e-5
Inputs = dict[str, Tensor]
Key = tuple[str, tuple[int, ...]]
"""An operation and what `fastselfie.kernels.dispatch.fused` tells its shapes by."""


class Case(Protocol):
    """An operation in one shape. Those of ``inputs`` that require a gradient are what backward differentiates by."""

    @property
    def operation(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def key(self) -> Key: ...
    @property
    def forward_bytes(self) -> int: ...
    @property
    def backward_bytes(self) -> int:
        """0: it has no backward."""

    def inputs(self, device: torch.device, seed: int) -> Inputs: ...
    def run(self, operations: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """``operations``: a module with the operations by their names."""


@dataclass(frozen=True, kw_only=True)
class PatchBatch:
    """The training view: resident images are gathered, cropped and mirrored, others come as a grid view."""

    shape: Shape
    dtype: torch.dtype
    operation = "patch_batch"
    backward_bytes = 0

    @property
    def name(self) -> str:
        return f"{self.shape.recipe} B={self.shape.B}"

    @property
    def key(self) -> Key:
        return "patch_batch", (self.shape.H, self.shape.P)

    @property
    def forward_bytes(self) -> int:
        """Pixels 1 byte each, places 8, and of resident images row 8, corner 16 and flip 1; the patches."""
        B, values = self.shape.B, self.shape.B * self.shape.H**2 * 3
        choices = B * (8 + 16 + 1) if self.shape.resident else 0
        return values + 8 * B * self.shape.N + choices + values * self.dtype.itemsize

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        shape, generator = self.shape, _generator(device, seed)
        B, size = shape.B, (shape.H, shape.H, 3) if shape.resident else (shape.grid, shape.P, shape.grid, shape.P, 3)
        made = {
            "pixels": torch.randint(0, 256, (B, *size), dtype=torch.uint8, device=device, generator=generator),
            "mean": torch.tensor(shape.mean, device=device), "std": torch.tensor(shape.std, device=device),
            "places_BN": _permutations(B, shape.N, device, generator),
        }  # fmt: skip
        if shape.resident:
            made["rows_B"] = _permutations(1, B, device, generator)[0]
            made["corner_B2"] = torch.randint(0, 2 * shape.pad + 1, (B, 2), device=device, generator=generator)
            made["flip_B"] = torch.rand(B, device=device, generator=generator) < 0.5
        return made

    def run(self, operations: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        shape = self.shape
        return (
            operations.patch_batch(
                **inputs, patch=shape.P, dtype=self.dtype, pad=shape.pad, pad_mode=shape.pad_mode
            ),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PatchTokens:
    """`channel_sums` of the maps, mean and variance from them, and `patch_tokens` with position vectors."""

    shape: Shape
    dtype: torch.dtype
    operation = "patch_tokens"

    @property
    def name(self) -> str:
        return f"{self.shape.recipe} B={self.shape.B} keep={self.shape.keep}"

    @property
    def key(self) -> Key:
        """Of both operations: `channel_sums` goes by the choice for `patch_tokens`."""
        return "patch_tokens", (self.shape.D, self.shape.h, self.shape.h)

    @property
    def _map_bytes(self) -> int:
        return self.shape.B * self.shape.N * self.shape.D * self.shape.h**2 * self.dtype.itemsize

    @property
    def _result_bytes(self) -> int:
        """Tokens, fp32 as the position vectors are, and features of the maps' dtype."""
        B, n, m, D = self.shape.B, self.shape.n, self.shape.m, self.shape.D
        return B * (1 + n) * D * 4 + B * m * D * self.dtype.itemsize

    @property
    def _vector_bytes(self) -> int:
        """Weight, bias, u0 and position vectors, fp32."""
        return (3 + self.shape.N) * self.shape.D * 4

    @property
    def forward_bytes(self) -> int:
        """Sums: maps, and 2 fp64 a channel written. Tokens: maps, statistics, vectors and places; the results."""
        sums = self._map_bytes + 2 * self.shape.D * 8
        places = self.shape.B * self.shape.N * 8
        return sums + self._map_bytes + 2 * self.shape.D * 4 + self._vector_bytes + places + self._result_bytes

    @property
    def backward_bytes(self) -> int:
        """Twice the maps and the results' gradients; the gradients of maps and vectors."""
        return 2 * (self._map_bytes + self._result_bytes) + self._map_bytes + self._vector_bytes

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        shape, generator = self.shape, _generator(device, seed)
        B, N, D, h = shape.B, shape.N, shape.D, shape.h
        maps = torch.randn(B * N, D, h, h, device=device, generator=generator, dtype=self.dtype)
        return {
            "maps": maps.contiguous(memory_format=torch.channels_last).requires_grad_(),
            "weight_D": _leaf(generator, device, D), "bias_D": _leaf(generator, device, D),
            "u0_D": _leaf(generator, device, D), "positions_ND": _leaf(generator, device, N, D),
            "places_BN": _permutations(B, N, device, generator),
        }  # fmt: skip

    def run(self, operations: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        shape, maps = self.shape, inputs["maps"]
        count = shape.B * shape.N * shape.h**2
        mean_D, square_D = (operations.channel_sums(maps) / count).unbind()
        statistics_2D = torch.stack([mean_D, square_D - mean_D**2]).float()
        vectors = (inputs[name] for name in ("weight_D", "bias_D", "u0_D", "positions_ND", "places_BN"))
        return operations.patch_tokens(maps, statistics_2D, *vectors, shape.n, eps=EPS, count=count)


@dataclass(frozen=True, kw_only=True)
class LocationHead:
    """The question about ``m`` masked patches. u and e are fp32, as they are with position vectors in the features."""

    label: str
    B: int
    N: int
    m: int
    D: int
    dtype: torch.dtype
    operation = "location_head"

    @property
    def name(self) -> str:
        return f"{self.label} B={self.B} m={self.m}"

    @property
    def key(self) -> Key:
        return "location_head", (self.m, self.D)

    @property
    def _input_bytes(self) -> int:
        return self.B * self.D * 4 + self.N * self.D * 4 + self.B * self.m * self.D * self.dtype.itemsize

    @property
    def forward_bytes(self) -> int:
        """u, e, features and places; loss and count, 12 bytes."""
        return self._input_bytes + self.B * self.m * 8 + 12

    @property
    def backward_bytes(self) -> int:
        """The same, the loss' gradient of 4 bytes in place of results; the gradients of u, e and features."""
        return 2 * self._input_bytes + self.B * self.m * 8 + 4

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        generator = _generator(device, seed)
        return {
            "u_BD": _leaf(generator, device, self.B, self.D), "positions_ND": _leaf(generator, device, self.N, self.D),
            "places_Bm": _permutations(self.B, self.N, device, generator)[:, -self.m :],
            "h_BmD": _leaf(generator, device, self.B, self.m, self.D, dtype=self.dtype),
        }  # fmt: skip

    def run(self, operations: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        names = ("u_BD", "positions_ND", "places_Bm", "h_BmD")
        return operations.location_head(*(inputs[name] for name in names), 1 / math.sqrt(self.D))


def cases(dtype: torch.dtype, batches: Sequence[tuple[str, int]], keeps: Sequence[float]) -> list[Case]:
    """Every operation in the shapes of recipes with a batch size each, and with shares of visible patches."""
    shapes = [shape_of(name, keep=keep, batch=batch) for name, batch in batches for keep in keeps]
    found: list[Case] = [PatchBatch(shape=shape, dtype=dtype) for shape in shapes if shape.keep == keeps[0]]
    found += [PatchTokens(shape=shape, dtype=dtype) for shape in shapes]
    found += [LocationHead(label=s.recipe, B=s.B, N=s.N, m=s.m, D=s.D, dtype=dtype) for s in shapes]
    return found


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _permutations(B: int, N: int, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.rand(B, N, device=device, generator=generator).argsort(dim=1)


def _leaf(generator: torch.Generator, device: torch.device, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, device=device, generator=generator, dtype=dtype).requires_grad_()
