"""Triton's interpreter without the work that it does again for every value: what is computed stays its own.

It makes each tensor's type anew, and patches its language anew in each call of a function inside a kernel, although the
kernel's launch has. That is more than half of its time. Here a type is made once, the language patched once a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton import language
from triton.language import core
from triton.runtime import interpreter


def quicken() -> None:
    """For the rest of this process. A second call changes nothing."""
    if core.block_type.__init__ is _block_type:
        return
    core.block_type.__init__, core.tensor.__init__ = _block_type, _tensor
    interpreter._get_np_dtype = _numpy_dtype
    interpreter._patch_lang = _patch_once(interpreter._patch_lang)


_make_block_type, _make_tensor, _find_numpy_dtype = (
    core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype,
)  # fmt: skip
_BLOCK_TYPES: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
_SHAPES: dict[tuple[int, ...], dict[str, Any]] = {}
_NUMPY_DTYPES: dict[str, Any] = {}


def _block_type(self: Any, element_ty: Any, shape: Any) -> None:
    key = element_ty.name, _numbers(shape)
    known = _BLOCK_TYPES.get(key)
    if known is None:
        _make_block_type(self, element_ty, shape)
        _BLOCK_TYPES[key] = {name: getattr(self, name) for name in ("shape", "numel", "name")}
    else:
        self.__dict__.update(known, element_ty=element_ty)


def _tensor(self: Any, handle: Any, type: Any) -> None:
    key = _numbers(type.shape) if type.is_block() else ()
    known = _SHAPES.get(key)
    if known is None:
        _make_tensor(self, handle, type)
        _SHAPES[key] = {name: getattr(self, name) for name in ("shape", "numel")}
    else:
        self.__dict__.update(known, handle=handle, type=type, dtype=type.scalar)


def _numbers(shape: Any) -> tuple[int, ...]:
    return tuple(size.value if isinstance(size, core.constexpr) else size for size in shape)


def _numpy_dtype(dtype: Any) -> Any:
    scalar = dtype.scalar.name
    if scalar not in _NUMPY_DTYPES:
        _NUMPY_DTYPES[scalar] = _find_numpy_dtype(dtype)
    return _NUMPY_DTYPES[scalar]


def _patch_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Not again inside of a launch, which restores at its end what it has patched."""

    def patched(fn: Any) -> Any:
        used = [core.tensor.__add__]  # what is patched is no builtin any more
        used += [
            module.load for module in (language, core) if any(module is value for value in fn.__globals__.values())
        ]
        return patch(fn) if any(map(core.is_builtin, used)) else interpreter._LangPatchScope()

    return patched
