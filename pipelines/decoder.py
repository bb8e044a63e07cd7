"""A DALI graph at work: requests go in, pixels come out in the same order, several runs ahead where asked.

One undecodable image ends a whole DALI pipeline, and its message does not say which image it was. So it is looked for
afterwards, by decoding each image of the runs under way by itself.
"""

from __future__ import annotations

import importlib.util
import re
from base64 import b64decode
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor

from fastselfie.errors import LocalError, UserError
from fastselfie.pipelines.gpu_decoding import BY_DEFAULT, GpuDecoding
from fastselfie.pipelines.graph_runner import DALI_ERRORS, Encoded, GraphRunner
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import View


def require_dali() -> None:
    """Raises `UserError` where NVIDIA DALI is not installed."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise UserError(
            "reading JPEG and PNG files needs NVIDIA DALI: pip install 'fastselfie[dali]'"
            " (or 'fastselfie[dali-cuda12]' for a driver of CUDA 12; on a CPU 'fastselfie[turbo]' does as well)"
        )


def dali_version() -> str | None:
    """The version of NVIDIA DALI that is installed, None without it."""
    for cuda in ("130", "120"):
        with suppress(PackageNotFoundError):
            return version(f"nvidia-dali-cuda{cuda}")
    return None


# Grey, 16 pixels a side.
_GOOD_JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/wAALCAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABQMG/8QAFxABAAMAAAAAAAAAAAAAAAAABAAhMf/aAAgBAQAAPwDMjHlRwY8q"
    "UGPKjgx5U//Z"
)


class DaliDecoder:
    """Decodes files to a view on a device.

    After a failure it starts anew: what is scheduled next is decoded, what was under way is forgotten.
    """

    def __init__(
        self, view: View, *, batch: int, threads: int, device: torch.device, depth: int = 1,
        gpu: GpuDecoding = BY_DEFAULT,
    ) -> None:  # fmt: skip
        """Args: batch: images of a run at most. depth: runs under way at most. gpu: how a GPU decodes."""
        make = partial(GraphRunner, view, threads=threads, device=device)
        self._make = partial(make, batch=batch, depth=depth, gpu=gpu)
        # Not by the hardware decoder: what it takes is more, by itself, than in a batch others take.
        self._make_for_one = partial(make, batch=1, depth=1, gpu=replace(gpu, hardware_share=0))
        self._runner = self._make()
        self._under_way: deque[Encoded] = deque()
        self._failure: Exception | None = None

    def schedule(self, encoded: Encoded) -> None:
        """Start decoding. What is wrong with a file shows in `take`."""
        self._under_way.append(encoded)
        try:
            if self._failure is None:
                self._runner.schedule(encoded)
        except DALI_ERRORS as error:
            self._failure = error

    def take(self) -> Tensor:
        """The oldest run's pixels: uint8 (B, G, P, G, P, 3) on the device.

        Raises:
            Undecodable: names the images of all runs under way that cannot be decoded. LocalError: each alone can, but
            all together not in the memory there is.
        """
        try:
            if self._failure is not None:
                raise self._failure
            pixels = self._runner.take()
        except DALI_ERRORS as error:
            under_way = list(self._under_way)
            self._begin_anew()
            bad = self._culprits(under_way, error)
            if bad:
                raise Undecodable(bad) from error
            if _short_of_memory(error):
                raise LocalError(
                    "--prefetch: decoding so many images at once needs more memory than there is; take a smaller"
                    " --prefetch or --micro-batch-size"
                ) from None
            raise RuntimeError(f"DALI failed, though each file of the batch decodes by itself: {error}") from error
        self._under_way.popleft()
        return pixels

    def drop(self) -> None:
        """Let go of every run under way, good or bad."""
        with suppress(*DALI_ERRORS, StopIteration):  # the last: Ctrl-C, after a run was taken and before it was counted
            while self._under_way and self._runner.usable:
                self._runner.take()
                self._under_way.popleft()
        if self._under_way or not self._runner.usable:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._runner = self._make()
        self._under_way.clear()
        self._failure = None

    def _culprits(self, under_way: Sequence[Encoded], error: Exception) -> dict[tuple[int, int], str]:
        """Decode image by image: what is wrong with those that fail, by run and position.

        Raises:
            RuntimeError: what is known to be good fails too, so that ``error`` is no image's.
        """
        runner, bad = self._make_for_one(), {}
        try:
            runner.schedule(replace(under_way[0].only(0), data=[np.frombuffer(b64decode(_GOOD_JPEG), np.uint8)]))
            runner.take()
        except DALI_ERRORS:
            raise RuntimeError(f"DALI fails whatever the image: {error}") from error
        for run, encoded in enumerate(under_way):
            for position in range(len(encoded.data)):
                try:
                    runner.schedule(encoded.only(position))
                    runner.take()
                except DALI_ERRORS as error:
                    short = _short_of_memory(error)
                    bad[run, position] = "needs more memory to be decoded than there is" if short else "is damaged"
                    runner = self._make_for_one()
        return bad


def _short_of_memory(error: Exception) -> bool:
    """Not of an illegal memory access, which is CUDA's word for a fault of a kernel."""
    return re.search("alloc|(?<!illegal )memory", str(error), re.IGNORECASE) is not None
