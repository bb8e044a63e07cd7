"""Batch norm, ReLU and the branch past them as one node of the graph, for training on a CPU.

The same kernels as the modules', but ReLU works in place and the two gradients that meet at the input are added in
place: memory that was just written is still in the cache, fresh memory is not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm_relu(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``relu(norm(x))`` and ``x`` itself, for whoever uses it further: (B, C, h, w) both."""
    plain = type(norm) is nn.BatchNorm2d and norm.training and x.device.type == "cpu"
    if not plain or torch.compiler.is_compiling():
        return F.relu(norm(x), inplace=True), x
    activated, residual = NormRelu.apply(x, norm.weight, norm.bias, norm)
    return activated, residual


class NormRelu(torch.autograd.Function):
    """`norm_relu` of a BatchNorm2d in training; its running statistics are updated as its own forward would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        assert norm.momentum is not None
        assert norm.num_batches_tracked is None
        activated, mean_C, slope_C = torch.native_batch_norm(
            x, weight_C, bias_C, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        activated.relu_()
        ctx.save_for_backward(x, weight_C, activated, mean_C, slope_C)
        ctx.eps = norm.eps
        ctx.set_materialize_grads(False)
        return activated, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        g, g_residual = gradients
        if g is None:
            return g_residual, None, None, None
        x, weight_C, activated, mean_C, slope_C = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(g, activated, 0)
        gx, gweight_C, gbias_C = torch.ops.aten.native_batch_norm_backward(
            g, x, weight_C, None, None, mean_C, slope_C, True, ctx.eps, [True, True, True]
        )
        return gx if g_residual is None else gx.add_(g_residual), gweight_C, gbias_C, None
