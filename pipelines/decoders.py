"""Which decoder a pipeline gets. Their pixels are not quite the same, so a run keeps the one it began with."""

from __future__ import annotations

import importlib.util
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from fastselfie.pipelines.decoder import DaliDecoder, require_dali
from fastselfie.pipelines.gpu_decoding import BY_DEFAULT, GpuDecoding
from fastselfie.pipelines.graph_runner import Encoded
from fastselfie.pipelines.image_decoding import require_turbo
from fastselfie.pipelines.turbo_decoder import TurboDecoder
from fastselfie.pipelines.view import View

DecoderName: TypeAlias = Literal["dali", "turbo"]


class AnyDecoder(Protocol):
    """What a pipeline knows of a decoder; see `fastselfie.pipelines.decoder.DaliDecoder`."""

    def schedule(self, encoded: Encoded) -> None: ...
    def take(self) -> Tensor: ...
    def drop(self) -> None: ...


def choose_decoder(asked: Literal["auto", "dali", "turbo"], device: torch.device) -> tuple[DecoderName, str]:
    """The decoder for views on ``device``.

    Returns:
        its name, and why it is this one: a phrase for a message.

    Raises:
        UserError: it is not installed.
    """
    turbo = importlib.util.find_spec("simplejpeg") is not None
    if asked == "turbo" or (asked == "auto" and device.type == "cpu" and turbo):
        require_turbo()
        return "turbo", "asked for" if asked == "turbo" else "faster on a CPU"
    require_dali()
    if asked == "dali":
        return "dali", "asked for"
    return "dali", "decodes on the device" if device.type == "cuda" else "simplejpeg is not installed"


def make_decoder(
    name: DecoderName, view: View, *, batch: int, threads: int, device: torch.device, depth: int,
    gpu: GpuDecoding = BY_DEFAULT,
) -> AnyDecoder:  # fmt: skip
    """A decoder; one on the CPU, whatever the device, where it is libjpeg-turbo's.

    Args:
        batch: images of a run at most. depth: runs under way at most. gpu: of DALI on a GPU.

    Raises:
        UserError: it is not installed.
    """
    if name == "turbo":
        return TurboDecoder(view, batch=batch, threads=threads, depth=depth)
    require_dali()
    return DaliDecoder(view, batch=batch, threads=threads, device=device, depth=depth, gpu=gpu)
