"""How much memory a loader will take, told before it starts: the sum of what it holds, from a look at a few images.

What is bounded: batches being read, batches being decoded, and of each thread the largest image that it meets. Nothing
grows with the number of steps, and of packed shards nothing with the number of images.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from fastselfie.pipelines.image_bytes import BadImage, sides
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.source import EncodedImages
from fastselfie.pipelines.view import View

_LOOKED_AT = 256  # images
_READERS = 4
_DALI_BYTES, _TURBO_BYTES = 30 << 20, 25 << 20  # threads, decoders and graph; measured on a CPU
# Holes between what is in use, measured on a CPU with batches of 16 to 256: DALI's, and turbo's where the process
# keeps freed memory.
_DALI_HOLES, _KEPT_HOLES = 1.15, 1.8
_LARGER = 0.9  # DALI's places for windows grow to the larger ones that they met: this share of images is smaller
_IN_HAND = 2  # batches that are with who asked for them
# What DALI's decoder on a GPU sets aside for each thread: its device_memory_padding, and twice its host_memory_padding.
_OF_A_THREAD = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes at most in the memory of the host and of the device; of images like those that were looked at."""

    host: int
    device: int

    def told(self) -> str:
        """For the user."""
        device = f", {_text(self.device)} of the device's" if self.device else ""
        return f"{_text(self.host)} of memory{device}"


def footprint(
    images: EncodedImages, view: View, loading: Loading, device: torch.device, kept: bool = False
) -> Footprint:
    """What a `FilePipeline` will hold at once beside the libraries themselves.

    Args:
        kept: whether the process keeps freed memory (`fastselfie.training.memory`).
    """
    encoded, pixels, largest = _look(images)
    holes = _KEPT_HOLES if kept else 1.0
    batch, depth = loading.batch, loading.prefetch
    view_bytes = 3 * view.size**2
    cropped = (1 + view.min_area) / 2 if view.crop == "resized" else 1.0  # the mean area of a random resized crop
    reading = depth * batch * encoded
    if loading.decoder == "turbo":  # bytes once; of each thread an image and its window
        host = reading + depth * batch * (encoded + view_bytes) + loading.threads * 2 * 3 * largest
        copies = _IN_HAND * batch * view_bytes
        on_device = copies if device.type == "cuda" else 0
        return Footprint(host=round(holes * (host + copies + _TURBO_BYTES)), device=round(on_device))
    if device.type == "cuda" and view.crop == "resized" and not loading.gpu.regions:
        cropped += 1  # the whole image too
    held = _DALI_HOLES * depth * batch * (3 * pixels * cropped + 2 * view_bytes)  # windows, views, views flipped
    host = reading + depth * batch * 2 * encoded + _DALI_BYTES  # bytes: ours and DALI's copy
    if device.type == "cuda":
        host, held = host + loading.threads * _OF_A_THREAD, held + loading.threads * _OF_A_THREAD
        return Footprint(host=round(host), device=round(held + _IN_HAND * batch * view_bytes))
    host += held + _IN_HAND * batch * view_bytes + loading.threads * 3 * largest
    return Footprint(host=round(host), device=0)


def _look(images: EncodedImages) -> tuple[float, float, int]:
    """Mean bytes, pixels of a larger one, and most pixels, of images spread over all; unreadable ones do not count."""
    looked_at = range(0, len(images), -(-len(images) // _LOOKED_AT))
    with ThreadPoolExecutor(images.readers or _READERS, thread_name_prefix="look") as pool:
        seen = [shape for shape in pool.map(lambda index: _shape(images, index), looked_at) if shape is not None]
    sizes, areas = [size for size, _ in seen], [area for _, area in seen]
    if not sizes:
        return 0.0, 0.0, 0
    areas.sort()
    return sum(sizes) / len(sizes), areas[int(_LARGER * len(areas))], areas[-1]


def _shape(images: EncodedImages, index: int) -> tuple[int, int] | None:
    """Bytes and pixels of an image; None of one that cannot be read."""
    try:
        data = images.read(index)
    except (OSError, BadImage):
        return None
    found = sides(data)
    return None if found is None else (len(data), found[0] * found[1])


def _text(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(round(count / 2**20), 1)} MiB"
