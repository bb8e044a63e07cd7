"""Folders of runs made by hand, as training would leave them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastselfie.recipes import recipe


def write_run(path: Path, command: str, lines: Sequence[dict[str, Any]], result: dict[str, Any] | None = None,
              weights: str | None = None, **settings: Any) -> Path:  # fmt: skip
    """A run of the recipe ``tiny`` with ``settings`` that has logged ``lines``; unfinished without a ``result``.

    ``weights``: fingerprint of those that it started from.
    """
    tiny = recipe("tiny")
    config = dataclasses.asdict(tiny.pretrain if command == "pretrain" else tiny.finetune) | {"out": path} | settings
    path.mkdir(parents=True)
    record = {"command": command, "settings": config, "facts": {"images": "0123", "weights": weights}, "made_by": {}}
    (path / "config.json").write_text(json.dumps(record, default=str))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path


def pretraining_lines(steps: int = 40, every: int = 10) -> list[dict[str, Any]]:
    """Lines of a pretraining run that evaluates at every second one."""
    lines = []
    for step in range(every, steps + 1, every):
        line = {
            "step": step, "loss": 2 / step, "accuracy": step / 100, "lr": 0.1 - step / 1000,
            "images_per_second": 100.0 + step, "data_wait": 0.01, "peak_gib": 0.5,
        }  # fmt: skip
        if step % (2 * every) == 0:
            line |= {"held_out_accuracy": 0.5, "accuracy_shuffled": 0.5 - step / 1000, "context_gap": step / 1000}
        lines.append(line)
    return lines


def write_pretraining(path: Path, steps: int = 40, **settings: Any) -> Path:
    """A finished pretraining run."""
    lines = pretraining_lines(steps)
    return write_run(path, "pretrain", lines, {"data": "synthetic", **lines[-1]}, steps=steps, **settings)


def write_finetuning(path: Path, test_accuracy: float, pretrained: Path | None = None, **settings: Any) -> Path:
    """A finished finetuning run, from scratch unless it is ``pretrained``."""
    lines = [{"step": 10, "loss": 2.0, "accuracy": 0.2}, {"step": 20, "loss": 1.0, "test_accuracy": test_accuracy}]
    result = {"labelled_images": 1_250, **lines[-1]}
    start: dict[str, Any] = {"pretrained": pretrained, "scratch": pretrained is None}
    return write_run(path, "finetune", lines, result, steps=20, labels="5%", **start, **settings)


def write_placements(run: Path, pictures: Sequence[NDArray[np.uint8]], moments: Sequence[dict[str, Any]]) -> None:
    """The folder ``placements`` of a run."""
    folder = run / "placements"
    folder.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"picture-{index}.png")
    (folder / "moments.jsonl").write_text("".join(json.dumps(moment) + "\n" for moment in moments))
