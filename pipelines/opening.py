"""Which pipeline a split gets: images in memory live on the device, files are decoded as they are needed."""

from __future__ import annotations

import torch

from fastselfie.errors import UserError
from fastselfie.pipelines.file_pipeline import FilePipeline
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.rows import Rows
from fastselfie.pipelines.source import AnySplit, EncodedImages
from fastselfie.pipelines.view import View


def open_pipeline(
    split: AnySplit, *, view: View, seed: int, device: torch.device, loading: Loading, rows: Rows | None = None
) -> Pipeline:
    """A pipeline over the images of ``split`` that ``rows`` names, or over all.

    Raises:
        UserError: random resized crops of images in memory are asked for, or files are to be read without a decoder.
    """
    if isinstance(split, EncodedImages):
        return FilePipeline(split, view=view, seed=seed, device=device, loading=loading, rows=rows)
    if view.crop == "resized":
        raise UserError(
            "--crop resized: random resized crops are taken from JPEG and PNG files, and these images are in memory;"
            " take --crop pad, or write scenes as files (fastselfie render --out DIR) and give --data DIR"
        )
    return ResidentPipeline(split, view=view, seed=seed, device=device, rows=rows)
