"""Calls of every kernel in every shape that a recipe gives it, forward and backward, to be compiled and not run.

Tensors are of a recipe's own sizes, since Triton compiles apart for numbers that are 1 or divisible by 16. They are
never written to, so that the largest cost no memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.recipe_shapes import Shape, shape_of
from fastselfie.config import ModelConfig
from fastselfie.kernels import using
from fastselfie.kernels.fused.channel_sums import channel_sums
from fastselfie.kernels.fused.location_head import location_head
from fastselfie.kernels.fused.patch_batch import patch_batch
from fastselfie.kernels.fused.patch_tokens import patch_tokens
from fastselfie.models.resnet import trunk
from fastselfie.recipes import RECIPES, recipe

OTHER_KEEP = 0.5  # beside the recipes' own
DTYPES = (torch.bfloat16, torch.float32)
EVALUATED, TESTED = 256, 500  # images of an evaluation's batch at most, in pretraining and in finetuning


def call_around_the_trunk() -> None:
    """Every operation around the trunk as pretraining and finetuning by every recipe call it.

    Left out, since compiling takes a quarter of a second a kernel: evaluation without position vectors in the features
    or with the paper's other share of visible patches; that share with position vectors at less than full width; and in
    bf16 without position vectors that share and less than full width. They were compiled once, and none spilled.
    """
    for name in RECIPES:
        full_width = recipe(name).pretrain.width == 1
        for dtype in DTYPES:
            _finetune(name, dtype)
            _pretrain(shape_of(name), dtype)
            if full_width:
                _around_the_trunk(shape_of(name, keep=OTHER_KEEP), dtype, with_positions=True)
        for keep in (recipe(name).pretrain.keep, OTHER_KEEP):  # some of these spill
            _around_the_trunk(shape_of(name, keep=keep), torch.float32, with_positions=False)
        if full_width:
            _around_the_trunk(shape_of(name), torch.bfloat16, with_positions=False)


def call_trunk() -> None:
    """The trunk's stages, forward and backward, on patches: at full width in bf16, and at a quarter in fp32, which
    is for comparison and not for speed. Rows are not specialised, so few patches stand for any number."""
    for width, dtype in ((1.0, torch.bfloat16), (0.25, torch.float32)):
        network = trunk(ModelConfig(image_size=32, patch=8, width=width))
        patches = torch.empty(4, 3, 8, 8).requires_grad_()
        with using("on", trunk="fused"), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            maps, _ = network.forward_stages(patches)
        torch.autograd.grad(maps, patches, torch.empty_like(maps))


def _pretrain(shape: Shape, dtype: torch.dtype) -> None:
    """Training and evaluation."""
    plain = replace(shape, B=EVALUATED, pad=0)
    _cut(shape, dtype, places=True, random=True)
    _cut(plain, dtype, places=True, random=False)
    _around_the_trunk(shape, dtype, with_positions=True)
    with torch.no_grad():
        _around_the_trunk(plain, dtype, with_positions=True)


def _finetune(name: str, dtype: torch.dtype) -> None:
    """A whole image is one patch."""
    shape = shape_of(name, batch=recipe(name).finetune.batch_size)
    whole = replace(shape, P=shape.H)
    _cut(whole, dtype, places=False, random=True)
    _cut(replace(whole, B=TESTED, pad=0), dtype, places=False, random=False)


def _cut(shape: Shape, dtype: torch.dtype, *, places: bool, random: bool) -> None:
    """`patch_batch` on a training view or on a plain one."""
    B, G = shape.B, shape.grid
    size = (B, shape.H, shape.H, 3) if shape.resident else (B, G, shape.P, G, shape.P, 3)
    settings: dict[str, Any] = {"rows_B": _indices(B)} if shape.resident else {}
    if shape.resident and random:
        settings |= {"corner_B2": _indices(B, 2), "flip_B": torch.empty(B, dtype=torch.bool)}
    patch_batch(
        torch.empty(size, dtype=torch.uint8), patch=shape.P, mean=torch.empty(3), std=torch.empty(3), dtype=dtype,
        pad=shape.pad, pad_mode=shape.pad_mode, places_BN=_indices(B, G * G) if places else None, **settings,
    )  # fmt: skip


def _around_the_trunk(shape: Shape, dtype: torch.dtype, with_positions: bool) -> None:
    """Tokens and the head's question, and where there are gradients the way back. u is fp32: the pooler ends in a layer
    norm, which autocast keeps wide."""
    B, N, D, h = shape.B, shape.N, shape.D, shape.h
    maps = _leaf(B * N, D, h, h, dtype=dtype, memory_format=torch.channels_last)
    weight_D, bias_D, u0_D = _leaf(D), _leaf(D), _leaf(D)
    positions_ND, places_BN = _leaf(N, D), _indices(B, N)
    training = torch.is_grad_enabled()
    if training:
        channel_sums(maps)
    tokens, features_BmD = patch_tokens(
        maps, torch.empty(2, D), weight_D, bias_D, u0_D, positions_ND if with_positions else None, places_BN, shape.n,
        eps=1e-5, count=B * N * h * h if training else 0,
    )  # fmt: skip
    u_BD, h_BmD = _leaf(B, D), features_BmD.detach().requires_grad_()
    loss, _ = location_head(u_BD, positions_ND, places_BN[:, shape.n :], h_BmD, D**-0.5)
    if training:
        gradients = [torch.empty_like(tokens), torch.empty_like(features_BmD)]
        torch.autograd.grad([tokens, features_BmD], [maps], gradients)
        torch.autograd.grad(loss, [h_BmD])


def _leaf(*size: int, dtype: torch.dtype = torch.float32, memory_format: Any = torch.contiguous_format) -> Tensor:
    return torch.empty(size, dtype=dtype, memory_format=memory_format).requires_grad_()


def _indices(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.int64)
