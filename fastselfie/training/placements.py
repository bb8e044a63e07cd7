"""The paper's figure 2 while it happens: the same few images with the same masks, at six moments of training.

A run's ``placements/`` holds the images as PNG and ``moments.jsonl``, one object a moment: ``step``, and for each image
``places``, the masked ones, and ``chosen``, the places that the patches come from which the network puts there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor

from fastselfie.pipelines.view import Batch
from fastselfie.training.files import replace_bytes

FOLDER = "placements"
IMAGES = 4
_SHARES = (0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 1)  # of the steps: most is learnt early


def moments(steps: int) -> list[int]:
    """After how many steps the images are looked at, ascending; fewer than six in a very short run."""
    return sorted({round(share * steps) for share in _SHARES})


class Placements:
    """Writes a run's ``placements/``. For the main process alone."""

    def __init__(
        self, run: Path, steps: int, images: Callable[[], Batch], place: Callable[[Batch], tuple[Tensor, Tensor]]
    ) -> None:
        """Args: images: the batch to look at. place: masked and chosen places of it, see `SelfieTask.placements`."""
        self._folder, self._images, self._place = run / FOLDER, images, place
        self._file = self._folder / "moments.jsonl"
        self._moments = frozenset(moments(steps))

    def due(self, done: int) -> bool:
        """Whether the images are to be looked at after ``done`` steps."""
        return done in self._moments

    def cut_back(self, done: int) -> None:
        """Drop the moments after ``done`` steps, and a torn one: they will come again."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        kept = [line for line in lines if _step(line) <= done]
        if kept != lines:
            replace_bytes(self._file, "".join(line + "\n" for line in kept).encode())

    def record(self, done: int) -> None:
        """Look at the images with the network as it stands, in evaluation mode."""
        batch = self._images()
        places, chosen = (answer.tolist() for answer in self._place(batch))
        line = json.dumps({"step": done, "places": places, "chosen": chosen}) + "\n"
        if done == 0:  # a run that starts, maybe again, before its first checkpoint
            self._write_images(batch)
            replace_bytes(self._file, line.encode())
            return
        with self._file.open("a") as file:
            file.write(line)

    def _write_images(self, batch: Batch) -> None:
        self._folder.mkdir(exist_ok=True)
        for index, pixels in enumerate(batch.images().cpu().numpy()):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "png")
            replace_bytes(self._folder / f"picture-{index}.png", png.getvalue())


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
