"""A DALI graph that is fed and emptied run by run, and its results as torch tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastselfie.pipelines.gpu_decoding import GpuDecoding
from fastselfie.pipelines.view import View

DALI_ERRORS = (RuntimeError, IndexError, ValueError)
"""What DALI raises for a run that failed; its graph is of no use after any of them."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What one run of a decoder decodes: B images.

    Attributes:
        data: their bytes, uint8 (size,) each.
        draws: fp64 (B, `DRAWS`) for a random resized crop. flip: int32 (B,). A plain view needs neither.
    """

    data: Sequence[NDArray[np.uint8]]
    draws: NDArray[np.float64] | None = None
    flip: NDArray[np.int32] | None = None

    def only(self, index: int) -> Encoded:
        """Image ``index`` alone."""
        part = slice(index, index + 1)
        return Encoded(
            data=self.data[part], draws=None if self.draws is None else self.draws[part],
            flip=None if self.flip is None else self.flip[part],
        )  # fmt: skip


class GraphRunner:
    """Runs of one graph, in order.

    Attributes:
        usable: false after a failure, or Ctrl-C in the middle of a call: it can only be thrown away.
    """

    def __init__(
        self, view: View, *, batch: int, threads: int, device: torch.device, depth: int, gpu: GpuDecoding
    ) -> None:
        """Args: batch: images of a run at most. depth: runs under way at most."""
        from fastselfie.pipelines.graph import build_graph  # DALI: heavy, and only there where files are read

        device_id = _device_id(device)
        self._graph = build_graph(view, batch=batch, threads=threads, device_id=device_id, depth=depth, gpu=gpu)
        self._depth, self._primed, self.usable = depth, False, True
        # Copies out of DALI's memory wait for DALI alone, not for what torch still has to do on its own stream.
        self._stream = None if device_id is None else torch.cuda.Stream(device)

    def schedule(self, encoded: Encoded) -> None:
        """Start a run."""
        with self._to_its_end():
            if not self._primed:
                # A GPU's hardware decoder takes for good as many images at once as its share of the first batch is.
                self._prime(encoded.only(0) if self._stream is None else encoded)
            self._feed(encoded)
            self._graph.schedule_run()

    def take(self) -> Tensor:
        """The oldest run's pixels; see `fastselfie.pipelines.decoder.DaliDecoder.take`."""
        with self._to_its_end():
            (output,) = self._graph.share_outputs()
            pixels = self._tensor(output)
            self._graph.release_outputs()
        return pixels

    @contextmanager
    def _to_its_end(self) -> Iterator[None]:
        if not self.usable:
            raise RuntimeError("the graph was interrupted before")
        self.usable = False
        yield
        self.usable = True

    def _prime(self, encoded: Encoded) -> None:
        """The first call of schedule_run starts as many runs as the graph is deep: spend them on ``encoded``."""
        for _ in range(self._depth):
            self._feed(encoded)
        self._graph.schedule_run()
        for _ in range(self._depth):
            self._graph.share_outputs()
            self._graph.release_outputs()
        self._primed = True

    def _feed(self, encoded: Encoded) -> None:
        from fastselfie.pipelines.graph import DRAWN, ENCODED, FLIP

        self._graph.feed_input(ENCODED, list(encoded.data))
        if encoded.draws is not None:
            self._graph.feed_input(DRAWN, encoded.draws)
            self._graph.feed_input(FLIP, encoded.flip)

    def _tensor(self, output: Any) -> Tensor:
        """On a CPU DALI's own memory, which lives as long as the tensor. On a GPU a copy.

        There, DALI would wait for the whole device before it takes memory back that it has handed out.
        """
        dense = output.as_tensor()
        if self._stream is None:
            return from_dlpack(dense)
        from nvidia.dali.plugin.pytorch import feed_ndarray

        with torch.cuda.stream(self._stream):
            copy = torch.empty(dense.shape(), dtype=torch.uint8, device=self._stream.device)
            feed_ndarray(dense, copy, cuda_stream=self._stream)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        copied.synchronize()
        copy.record_stream(torch.cuda.current_stream(self._stream.device))
        return copy


def _device_id(device: torch.device) -> int | None:
    """As DALI counts; of ``cuda`` alone the one that PyTorch means by it."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if str(device) == "cuda" else device.index
