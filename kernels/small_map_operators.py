"""`small_maps` as operators, which torch.compile's graphs call as they are: traced, the assignments to slices of a map
would become copies of whole maps. To be imported where a graph is traced; see `small_maps` for shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.kernels import small_maps
from fastselfie.kernels.operator import operator

input_gradient = operator("small_map_input_gradient", "CPU")(small_maps.input_gradient)
weight_gradient = operator("small_map_weight_gradient", "CPU")(small_maps.weight_gradient)


@torch.library.register_fake("fastselfie::small_map_input_gradient")  # type: ignore[untyped-decorator]
def _(g: Tensor, weight: Tensor, h: int, w: int, stride: int) -> Tensor:
    return _channels_last(g, g.shape[0], h, w, weight.shape[1])


@torch.library.register_fake("fastselfie::small_map_weight_gradient")  # type: ignore[untyped-decorator]
def _(g: Tensor, x: Tensor, stride: int) -> Tensor:
    return _channels_last(g.to(torch.promote_types(g.dtype, torch.float32)), g.shape[1], 3, 3, x.shape[1])


def _channels_last(like: Tensor, maps: int, h: int, w: int, channels: int) -> Tensor:
    return like.new_empty(maps, h, w, channels).permute(0, 3, 1, 2)
