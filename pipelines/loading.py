"""How encoded images are loaded: with which decoder, by how many threads, and how far ahead."""

from __future__ import annotations

from dataclasses import dataclass

from fastselfie.pipelines.decoders import HARDWARE_SHARE, DecoderName


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How encoded images are loaded; of good images it changes no batch.

    Attributes:
        threads: that read, and as many that decode. prefetch: batches decoded ahead. batch: images of one at most.
        decoder: whose pixels they are. hardware_share: see `fastselfie.pipelines.graph.build_graph`.
    """

    threads: int
    prefetch: int
    batch: int
    decoder: DecoderName = "dali"
    hardware_share: float = HARDWARE_SHARE
