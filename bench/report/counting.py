"""Operations, bytes and peak memory of a step, counted while it runs eagerly.

Operations are those of dense products (matrix products, convolutions, attention), as torch's `FlopCounterMode` counts
them on the calls that are made: 2 a multiply-add, padding's zeros included. Bytes are what would go through memory if
nothing stayed in a cache: each call reads its arguments once and writes its results once, views are free. A kernel that
reads its input twice is counted once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_MOVES_NOTHING = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"})
_LOOKS_AT_SHAPES = frozenset({"zeros_like", "ones_like", "full_like", "rand_like", "new_zeros", "new_ones", "new_full"})
_OVERWRITES = frozenset({"copy_", "zero_", "fill_", "normal_", "uniform_", "_foreach_zero_", "_foreach_copy_"})
_READS_ALONE = frozenset({("_fused_sgd_", "grads")})  # marked as written for a gradient scaler, which nobody has here


def _attention(query: Any, key: Any, value: Any, D: int, *_: Any, **__: Any) -> int:
    """A whole self-attention: four D x D products of each of B x T tokens, and each token with all T twice."""
    B, T = query[:2]
    return 2 * B * T * (4 * D * D + 2 * T * D)


def _scaled_dot_product(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


_UNKNOWN = {  # what torch's counter leaves out: calls that only evaluations make; from the shapes of their arguments
    torch.ops.aten._native_multi_head_attention: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _scaled_dot_product,
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one step. ``peak_bytes``: of live tensors at once, weights and optimiser state included."""

    flops: int
    moved_bytes: int
    peak_bytes: int


def count(step: Callable[[], object]) -> Counts:
    """Run ``step`` once and count."""
    with Traffic() as traffic, FlopCounterMode(display=False, custom_mapping=_UNKNOWN) as operations:
        step()
    return Counts(
        flops=operations.get_total_flops(), moved_bytes=traffic.moved_bytes, peak_bytes=traffic.peak_bytes
    )  # fmt: skip


class Traffic(TorchDispatchMode):
    """Adds up bytes over every call inside."""

    def __init__(self) -> None:
        super().__init__()
        self.moved_bytes = 0
        self.peak_bytes = 0
        self._live_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._hold(tensor)
        result = func(*args, **kwargs)
        if not isinstance(func, torch._ops.OpOverload):  # control flow and the like: what is inside comes by itself
            return result
        for tensor in _tensors(result):
            self._hold(tensor)
        if not func.is_view and _name(func) not in _MOVES_NOTHING:
            self.moved_bytes += _read(func, args, kwargs) + _written(func, args, kwargs, result)
        return result

    def _hold(self, tensor: Tensor) -> None:
        """Account for a tensor's storage while it lives. What was there before the first call counts from when it is
        first used: it must have been there then."""
        storage = tensor.untyped_storage()
        if id(storage) in self._seen:
            return
        self._seen.add(id(storage))
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._release, id(storage), storage.nbytes()).atexit = False

    def _release(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self._live_bytes -= size


def _read(func: Any, args: Any, kwargs: Any) -> int:
    if _name(func) in _LOOKS_AT_SHAPES:
        return 0
    total = 0
    for argument, value in _given(func, args, kwargs):
        overwritten = _writes(func, argument) and (argument.kwarg_only or _name(func) in _OVERWRITES)
        total += 0 if overwritten else _bytes(value)
    return total


def _written(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Arguments that are changed in place, and results that are no alias of one."""
    changed = sum(_bytes(value) for argument, value in _given(func, args, kwargs) if _writes(func, argument))
    returns = func._schema.returns
    results = (result,) if len(returns) == 1 else result or ()
    fresh = (value for kind, value in zip(returns, results, strict=False) if kind.alias_info is None)
    return changed + sum(map(_bytes, fresh))


def _given(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Each argument of the schema that was given, with its value."""
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            yield argument, args[index]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _writes(func: Any, argument: Any) -> bool:
    marked = argument.alias_info is not None and argument.alias_info.is_write
    return marked and (_name(func), argument.name) not in _READS_ALONE


def _name(func: Any) -> str:
    return func._schema.name.rpartition("::")[2]


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(value: Any) -> int:
    """Of an expanded tensor those that there are."""
    return sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in _tensors(value))
