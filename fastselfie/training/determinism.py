"""The same bits again on the same device and versions, where that has a price."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastselfie.errors import UserError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def determinism(asked: bool) -> Iterator[None]:
    """Inside, PyTorch takes deterministic algorithms; unasked nothing changes.

    FastSelfie's own kernels need no asking: they add up in a fixed order. cuDNN's gradients of convolutions, cuBLAS in
    several streams and PyTorch's attention do, and the last is only warned about where warnings would do. To be entered
    before the first product on a CUDA device.

    Raises:
        UserError: an operation has no such algorithm.
    """
    if not asked:
        yield
        return
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # which cuBLAS reads when it is first used
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    torch.backends.cudnn.benchmark = False  # its choice of an algorithm is a race
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"--deterministic: {str(error).partition(',')[0]}; leave it out") from None
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[_WORKSPACE]
