"""A DALI graph at work: requests go in, pixels come out in the same order, several runs ahead where asked.

One undecodable file ends a whole DALI pipeline, and its message does not say which file it was. So it is looked for
afterwards, by decoding each file of the runs under way by itself.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastselfie.errors import LocalError, UserError
from fastselfie.pipelines.view import View

REMEDY = "put a readable image of that name in its place and run the same command again"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a run of the graph decodes. B images.

    Attributes:
        paths: where the files lie, for messages. data: their bytes, uint8 (size,) each.
        draws: fp64 (B, `DRAWS`) for a random resized crop. flip: int32 (B,). A plain view needs neither.
    """

    paths: Sequence[Path]
    data: Sequence[NDArray[np.uint8]]
    draws: NDArray[np.float64] | None = None
    flip: NDArray[np.int32] | None = None

    def only(self, index: int) -> Encoded:
        """Image ``index`` alone."""
        part = slice(index, index + 1)
        return Encoded(
            paths=self.paths[part], data=self.data[part], draws=None if self.draws is None else self.draws[part],
            flip=None if self.flip is None else self.flip[part],
        )  # fmt: skip


def require_dali() -> None:
    """Raises `UserError` where NVIDIA DALI is not installed."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise UserError(
            "reading JPEG and PNG files needs NVIDIA DALI: pip install 'fastselfie[dali]'"
            " (or 'fastselfie[dali-cuda12]' for a driver of CUDA 12)"
        )


class Decoder:
    """Decodes files to a view on a device."""

    def __init__(self, view: View, *, batch: int, threads: int, device: torch.device) -> None:
        self._view, self._batch, self._threads = view, batch, threads
        self._device_id = None if device.type == "cpu" else device.index or 0
        self._graph = self._build(batch)
        self._under_way: deque[Encoded] = deque()

    def __len__(self) -> int:
        """Runs under way."""
        return len(self._under_way)

    def schedule(self, encoded: Encoded) -> None:
        """Start decoding; at most ``batch`` images."""
        self._under_way.append(encoded)
        _schedule(self._graph, encoded)

    def take(self) -> tuple[Tensor, Tensor | None]:
        """The oldest run's result.

        Returns:
            pixels, uint8 (B, G, P, G, P, 3) on the device, and of a random resized crop the windows, int32 (B, 4) on
            the CPU: start and shape.

        Raises:
            LocalError: a file cannot be decoded; names it.
        """
        try:
            result = _outputs(self._graph, self._device_id)
        except (RuntimeError, IndexError) as error:
            self._name_the_culprit()
            raise RuntimeError(f"DALI failed, though each file of the batch decodes by itself: {error}") from error
        self._under_way.popleft()
        return result

    def drop(self) -> None:
        """Let go of every run under way."""
        while self._under_way:
            self.take()

    def _build(self, batch: int) -> Any:
        from fastselfie.pipelines.graph import build_graph  # DALI: heavy, and only there where files are read

        return build_graph(self._view, batch=batch, threads=self._threads, device_id=self._device_id)

    def _name_the_culprit(self) -> None:
        for encoded in self._under_way:
            for index, path in enumerate(encoded.paths):
                graph = self._build(1)
                try:
                    _schedule(graph, encoded.only(index))
                    _outputs(graph, self._device_id)
                except (RuntimeError, IndexError):
                    raise LocalError(f"{path}: is damaged; {REMEDY}") from None


def _schedule(graph: Any, encoded: Encoded) -> None:
    from fastselfie.pipelines.graph import DRAWN, ENCODED, FLIP

    graph.feed_input(ENCODED, list(encoded.data))
    if encoded.draws is not None:
        graph.feed_input(DRAWN, encoded.draws)
        graph.feed_input(FLIP, encoded.flip)
    graph.schedule_run()


def _outputs(graph: Any, device_id: int | None) -> tuple[Tensor, Tensor | None]:
    """The next run's outputs as tensors that keep DALI's memory, so nothing is copied."""
    stream = None if device_id is None else torch.cuda.current_stream(device_id)
    pixels, *window = graph.share_outputs(cuda_stream=stream)
    tensors = [from_dlpack(output.as_tensor()) for output in (pixels, *window)]
    graph.release_outputs()
    return tensors[0], tensors[1] if window else None
