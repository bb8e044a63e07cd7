"""Functions that launch kernels, as operators: torch.compile calls them as they are and does not look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., object])

_LIBRARY = torch.library.Library("fastselfie", "FRAGMENT")


def operator(name: str, *devices: str) -> Callable[[F], F]:
    """Make ``fastselfie::name`` of a function of tensors and plain values that returns fresh tensors.

    As `torch.library.custom_op`, in less of the host's time: a step of the fused trunk calls some two hundred.
    Gradients are `torch.library.register_autograd`'s, or the caller's.

    Args:
        devices: whose tensors it takes; by default the CPU's, where kernels are interpreted, and CUDA's.
    """

    def define(function: F) -> F:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        for device in devices or ("CPU", "CUDA"):
            _LIBRARY.impl(name, torch.compiler.disable(function), device)
        return cast(F, getattr(torch.ops.fastselfie, name).default)

    return define


def refuse_second_derivatives(name: str) -> None:
    """Have the backward of ``fastselfie::name``, which computes gradients, raise; else it would warn and give zeros."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(
            f"fastselfie::{name}: kernels have no second derivatives; plain PyTorch has them, under"
            " fastselfie.kernels.using('off')"
        )

    torch.library.register_autograd(f"fastselfie::{name}", refuse)
