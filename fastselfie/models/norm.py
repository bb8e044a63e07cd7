"""Batch norm, ReLU and the branches around them, for training on a CPU as one node of the graph.

PyTorch's kernels, the same as the modules', but ReLU works in place, and so do the sums of gradients that meet at a
branch: memory that was just written is still in the cache, fresh memory is not. Or, for bf16 maps and where numba is
there, `fastselfie.kernels.cpu.norm_relu`, which goes over memory half as often. torch.compile gets
`fastselfie.models.compiled.norm_relu`, and a CUDA device without it the modules.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastselfie.kernels.dispatch import numba_norm
from fastselfie.models import compiled
from fastselfie.models.statistics import update

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """``relu(norm(x))``, (B, C, h, w)."""
    return pre_activation(norm, x)[0]


def pre_activation(norm: nn.Module, x: Tensor, step: int | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """``relu(norm(x))``, every ``step``-th position of that for a shortcut with weights, and ``x`` for one without.

    Shapes (B, C, h, w), (B, C, h / step, w / step) and (B, C, h, w); None without a ``step``. With one, the first may
    go into a convolution alone: the backward pass writes into its gradient.
    """
    plain = type(norm) is nn.BatchNorm2d and norm.momentum is not None and norm.num_batches_tracked is None
    compiling = torch.compiler.is_compiling()
    if plain and norm.training and not compiling and x.device.type == "cpu":
        kernels = NumbaNormRelu if numba_norm(x) and _is_in_fp32(norm) else NormRelu
        outputs: tuple[Tensor, Tensor | None, Tensor] = kernels.apply(x, norm.weight, norm.bias, norm, step)
        return outputs
    if plain and norm.training and compiling and all(map(torch.is_tensor, _held(norm))):
        activated = compiled.norm_relu(cast(nn.BatchNorm2d, norm), x)
    else:
        activated = F.relu(norm(x), inplace=True)
    return activated, _picked(activated, step), x


def _picked(x: Tensor, step: int | None) -> Tensor | None:
    return x[:, :, ::step, ::step] if step else None


def _held(norm: nn.Module) -> tuple[Any, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def _is_in_fp32(norm: nn.Module) -> bool:
    """Whether the norm has weights and running statistics, all of them fp32."""
    return all(isinstance(tensor, Tensor) and tensor.dtype == torch.float32 for tensor in _held(norm))


def _met(g: Tensor | None, g_picked: Tensor | None, like: Tensor, step: int | None) -> Tensor:
    """The gradients of what was activated and of the positions picked from it, added up in the first one's memory."""
    if g is None:
        g = torch.zeros_like(like)
    if g_picked is not None:
        g[:, :, ::step, ::step].add_(g_picked)
    return g


class NormRelu(torch.autograd.Function):
    """`pre_activation` of a BatchNorm2d in training; its running statistics are updated as its own forward would."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, norm: nn.BatchNorm2d, step: int | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        assert norm.momentum is not None
        assert norm.num_batches_tracked is None
        activated, mean_C, rstd_C = torch.native_batch_norm(
            x, weight_C, bias_C, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        activated.relu_()
        ctx.save_for_backward(x, weight_C, activated, mean_C, rstd_C)
        ctx.eps, ctx.step = norm.eps, step
        ctx.set_materialize_grads(False)
        return activated, _picked(activated, step), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Gradients:
        g, g_picked, g_residual = gradients
        if g is None and g_picked is None:
            return g_residual, None, None, None, None
        x, weight_C, activated, mean_C, rstd_C = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(_met(g, g_picked, activated, ctx.step), activated, 0)
        gx, gweight_C, gbias_C = torch.ops.aten.native_batch_norm_backward(
            g, x, weight_C, None, None, mean_C, rstd_C, True, ctx.eps, [True, True, True]
        )
        return gx if g_residual is None else gx.add_(g_residual), gweight_C, gbias_C, None, None


class NumbaNormRelu(torch.autograd.Function):
    """`NormRelu` by the kernels that numba compiles: bf16 maps, fp32 weights and running statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, norm: nn.BatchNorm2d, step: int | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        from fastselfie.kernels.cpu import norm_relu as kernels  # numba is an extra

        activated, affine_4C = kernels.forward(x, weight_C, bias_C, norm.eps)
        update(norm, affine_4C[0], affine_4C[1], x.numel() // x.shape[1])
        ctx.save_for_backward(x, affine_4C)
        ctx.eps, ctx.step = norm.eps, step
        ctx.set_materialize_grads(False)
        return activated, _picked(activated, step), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Gradients:
        from fastselfie.kernels.cpu import norm_relu as kernels

        g, g_picked, g_residual = gradients
        if g is None and g_picked is None:
            return g_residual, None, None, None, None
        x, affine_4C = ctx.saved_tensors
        gx, gaffine_2C = kernels.backward(_met(g, g_picked, x, ctx.step), x, g_residual, affine_4C, ctx.eps)
        return gx, gaffine_2C[0], gaffine_2C[1], None, None
