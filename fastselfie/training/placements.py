"""The paper's figure 2 while it happens: the same few images with the same masks, at six moments of training.

A run's ``placements/`` holds the images as PNG and ``moments.jsonl``, one object a moment: ``step``, and for each image
``places``, the masked ones, and ``chosen``, the places that the patches come from which the network puts there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastselfie.files import replace_bytes
from fastselfie.pipelines.view import Batch
from fastselfie.training.step_lines import cut_back

FOLDER, MOMENTS = "placements", "moments.jsonl"
IMAGES = 4
_SHARES = (0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 1)  # of the steps: most is learnt early


def moments(steps: int) -> list[int]:
    """After how many steps the images are looked at, ascending; fewer than six in a very short run."""
    return sorted({round(share * steps) for share in _SHARES})


class PlacementRecorder:
    """Writes the ``placements/`` of a run's folder. For the main process alone."""

    def __init__(
        self, steps: int, images: Callable[[], Batch], place: Callable[[Batch], tuple[Tensor, Tensor]]
    ) -> None:
        """Args: images: the batch to look at. place: masked and chosen places of it, see `SelfieTask.placements`."""
        self._images, self._place, self._moments = images, place, frozenset(moments(steps))

    def due(self, done: int) -> bool:
        """Whether the images are to be looked at after ``done`` steps."""
        return done in self._moments

    def cut_back(self, run: Path, done: int) -> None:
        """Drop the moments after ``done`` steps, and a torn one: they will come again."""
        cut_back(run / FOLDER / MOMENTS, done)

    def record(self, run: Path, done: int) -> None:
        """Look at the images with the network as it stands, in evaluation mode."""
        folder, batch = run / FOLDER, self._images()
        places, chosen = (answer.tolist() for answer in self._place(batch))
        line = json.dumps({"step": done, "places": places, "chosen": chosen}) + "\n"
        folder.mkdir(exist_ok=True)
        if done == 0:  # a run that starts, maybe again, before its first checkpoint
            for index, pixels in enumerate(batch.images().cpu().numpy()):
                replace_bytes(folder / f"picture-{index}.png", _png(pixels))
            replace_bytes(folder / MOMENTS, line.encode())
            return
        with (folder / MOMENTS).open("a") as file:
            file.write(line)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
