"""Functions that numba compiles, run by the threads that PyTorch's own CPU kernels run on.

Those threads do not sleep between two tasks, so a second pool would have to fight them for the cores. Theirs is
libgomp's: what a C compiler makes of ``#pragma omp parallel`` is a call of its ``GOMP_parallel``.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

_PYTORCH = ctypes.CDLL(torch._C.__file__)  # finds what is in the libraries that it stands on, too
_ASKED = "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"
COMPILES = not numba.config.DISABLE_JIT
THERE = all(hasattr(_PYTORCH, name) for name in ("GOMP_parallel", *_ASKED))
"""Whether PyTorch runs on libgomp, as its own builds for Linux do."""

if THERE:
    for _name in _ASKED:
        llvmlite.binding.add_symbol(_name, ctypes.cast(getattr(_PYTORCH, _name), ctypes.c_void_p).value)
    _PYTORCH.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    _PYTORCH.GOMP_parallel.restype = None

# What a compiled function may call: which thread it is, of how many, and to wait until all have come as far.
thread = types.ExternalFunction("omp_get_thread_num", types.int32())
threads = types.ExternalFunction("omp_get_num_threads", types.int32())
barrier = types.ExternalFunction("GOMP_barrier", types.void())


def _pointer(element: Any) -> Any:
    """A function for compiled ones: an address as a pointer to such elements."""

    def signature_and_code(_: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(address), code

    return intrinsic(signature_and_code)


to_bf16, to_fp32 = _pointer(types.uint16), _pointer(types.float32)  # numba has no bf16: its bits


def team(function: Callable[[Any], None]) -> Callable[..., None]:
    """``function`` compiled, for all threads to run at once. Its only argument points to what it is called with, as
    int64s: an int itself, of a float the bits, of a tensor the address."""

    def compiled(cache: bool) -> Any:
        return numba.cfunc(types.void(types.CPointer(types.int64)), cache=cache, error_model="numpy")(function)

    try:
        job = compiled(cache=True)
    except Exception:  # nowhere to keep it, or what was kept is damaged, of which unpickling may raise anything
        job = compiled(cache=False)

    def call(*arguments: Tensor | int | float) -> None:
        values = (ctypes.c_int64 * len(arguments))(*map(_bits, arguments))
        # Asked for, as libgomp alone does not know it in a Python thread where PyTorch has not run yet; 0: no flags.
        _PYTORCH.GOMP_parallel(job.address, values, torch.get_num_threads(), 0)

    return call


def _bits(argument: Tensor | int | float) -> int:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        (bits,) = struct.unpack("=q", struct.pack("=d", argument))
        return int(bits)
    return argument
