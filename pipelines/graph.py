"""The DALI graphs: encoded bytes in, a uint8 view of patches out. One definition for the CPU and the GPU.

Without a GPU DALI decodes on the CPU; with one the ``mixed`` decoder does, and everything after it stays on the device.
Windows and shapes are always computed on the CPU. Nothing is drawn in here.

Shapes: G patches a side, P pixels a side of a patch, H = G * P.
"""

from __future__ import annotations

from typing import Any

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import Pipeline as Graph

from fastselfie.pipelines.gpu_decoding import BY_DEFAULT, GpuDecoding
from fastselfie.pipelines.view import View
from fastselfie.pipelines.window import random_window

ENCODED, DRAWN, FLIP = "encoded", "draws", "flip"
"""Names of the inputs: uint8 (bytes,), fp64 (`DRAWS`,) and int32 () a sample; a plain graph has the first alone."""


def build_graph(
    view: View, *, batch: int, threads: int, device_id: int | None, depth: int, gpu: GpuDecoding = BY_DEFAULT
) -> Graph:
    """A built graph, whose one output is uint8 (G, P, G, P, 3) a sample.

    Args:
        view: ``resized`` crops at random and flips; any other is the plain view, which has no random inputs.
        batch: images at most a run. device_id: the CUDA device, None without one. depth: runs under way at most.
        gpu: of a CPU only its ``regions`` count.
    """
    graph = Graph(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=depth)
    with graph:
        encoded = fn.external_source(name=ENCODED, dtype=types.UINT8, ndim=1)
        shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT64)
        decoder: dict[str, Any] = {"device": "cpu", "output_type": types.RGB}
        if device_id is not None:
            decoder |= {"device": "mixed", "hw_decoder_load": gpu.hardware_share}
        if view.crop == "resized":
            image = _random_resized_crop(encoded, shape, view, decoder, gpu.regions)
        else:
            image = _centre_crop(encoded, shape, view, decoder)
        graph.set_outputs(_as_patches(image, view))
    graph.build()
    return graph


def _random_resized_crop(encoded: Any, shape: Any, view: View, decoder: dict[str, Any], regions: bool) -> Any:
    """With ``regions`` only the window is decoded, as far as the format allows."""
    draws = fn.external_source(name=DRAWN, dtype=types.FLOAT64, ndim=1)
    flip = fn.external_source(name=FLIP, dtype=types.INT32, ndim=0)
    start, extent = random_window(shape, draws, view.min_area)
    window = {"start": start, "shape": extent, "axis_names": "HW"}
    if regions:
        image = fn.decoders.image_slice(encoded, **window, **decoder)
    else:
        image = fn.slice(fn.decoders.image(encoded, **decoder), **window)
    return fn.flip(_resize(image, view), horizontal=flip)


def _centre_crop(encoded: Any, shape: Any, view: View, decoder: dict[str, Any]) -> Any:
    """The shorter side resized to 256 for a view of 224 pixels, then the centre."""
    image = fn.decoders.image(encoded, **decoder)
    before = fn.stack(shape[0], shape[1])
    after = dali_math.floor(before * (view.shorter_side / dali_math.min(shape[0], shape[1])) + 0.5)
    start = dali_math.floor((after - view.size) * 0.5)
    # Only the centre is computed: of a very long image the rest might not fit into memory.
    return _resize(
        image, view, roi_start=_float(start * before / after), roi_end=_float((start + view.size) * before / after)
    )


def _resize(image: Any, view: View, **region: Any) -> Any:
    """Linear interpolation, with a filter as wide as the scale when the image becomes smaller."""
    size = [float(view.size)] * 2
    return fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True, **region)


def _float(value: Any) -> Any:
    return fn.cast(value, dtype=types.FLOAT)


def _as_patches(image: Any, view: View) -> Any:
    """(H, H, 3) seen as (G, P, G, P, 3): the same bytes in the same order."""
    patch = view.size // view.grid
    return fn.reshape(image, shape=[view.grid, patch, view.grid, patch, 3], layout="")
