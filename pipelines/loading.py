"""How encoded images are loaded: with which decoder, by how many threads, and how far ahead."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastselfie.pipelines.decoders import DecoderName
from fastselfie.pipelines.gpu_decoding import GpuDecoding, gpu_decoding


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How encoded images are loaded; of good images it changes no batch.

    Attributes:
        threads: that read, and as many that decode. prefetch: batches decoded ahead. batch: images of one at most.
        decoder: whose pixels they are. gpu: how DALI decodes on a GPU.
    """

    threads: int
    prefetch: int
    batch: int
    decoder: DecoderName = "dali"
    gpu: GpuDecoding = field(default_factory=gpu_decoding)
