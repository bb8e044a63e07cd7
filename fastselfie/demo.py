"""The whole story, small: render JPEG files, pretrain on them, finetune from that and from scratch, and report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastselfie.errors import UserError
from fastselfie.evaluation.finetune import finetune
from fastselfie.files import occupied
from fastselfie.pipelines.decoders import choose_decoder
from fastselfie.pipelines.scene_files import write_scenes
from fastselfie.recipes import recipe
from fastselfie.report.page import report
from fastselfie.training.hardware import choose_device
from fastselfie.training.pretrain import pretrain
from fastselfie.training.reporter import say
from fastselfie.training.session import RESULT

_LABELS = "5%"
_SCENES = {"train": 8192, "test": 2048, "size": 48}


def demo(out: Path) -> None:
    """Run the demo in ``out``, write its page and print a summary; go on with a half-done one.

    Raises:
        UserError: ``out`` holds something else, or nothing that decodes JPEG files is installed.
        Stopped: a signal ended a run; its state is saved.
    """
    choose_decoder("auto", torch.device(choose_device("auto").value))
    scenes, page = out / "scenes", out / "report.html"
    if not scenes.exists():
        _claim(out)
        say(f"{scenes}: rendering {_SCENES['train'] + _SCENES['test']} scenes as JPEG files")
        write_scenes(scenes, **_SCENES, seed=0, progress=lambda done: None)
    tiny = recipe("tiny")
    views: dict[str, Any] = {"data": str(scenes), "crop": "resized", "min_area": 0.3}
    pretraining = pretrain(dataclasses.replace(tiny.pretrain, **views, out=out / "pretrain", steps=400))
    settings = dataclasses.replace(tiny.finetune, **views, labels=_LABELS, steps=150, evaluate_every=150)
    pretrained = finetune(dataclasses.replace(settings, out=out / "finetune-pretrained", pretrained=pretraining))
    scratch = finetune(dataclasses.replace(settings, out=out / "finetune-scratch", scratch=True))
    report([pretraining, pretrained, scratch], page)
    _summarise(_result(pretraining), _result(pretrained), _result(scratch), page)


def _claim(out: Path) -> None:
    """Make the demo's folder. Of what a killed demo leaves there is at most the scenes' hidden folder yet."""
    try:
        if occupied(out):
            raise UserError(f"--out {out}: is not an empty folder and holds no demo; choose another")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None


def _result(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / RESULT).read_text())
    return result


def _summarise(pretraining: dict[str, Any], pretrained: dict[str, Any], scratch: dict[str, Any], page: Path) -> None:
    """Print what the three runs came to, and how much that proves."""
    console = Console()
    table = Table(title="FastSelfie demo: rendered scenes, 10 shapes")
    for heading in ("run", "measured on unseen scenes", "value"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    table.add_row(
        "pretraining",
        "accuracy, putting 4 masked patches in place (chance 25%)",
        f"{pretraining['held_out_accuracy']:.1%}",
    )
    table.add_row("", "the same with another image's summary", f"{pretraining['accuracy_shuffled']:.1%}")
    table.add_row("", "context gap: what seeing the rest of the image adds", f"{pretraining['context_gap']:+.1%}")
    labelled = f"{pretrained['labelled_images']} labels"
    table.add_row(
        f"ResNet-50, {labelled}", "accuracy, from pretrained weights (chance 10%)", f"{pretrained['test_accuracy']:.1%}"
    )
    table.add_row(f"ResNet-50, {labelled}", "accuracy, from scratch", f"{scratch['test_accuracy']:.1%}")
    console.print(table)
    print(
        "One seed, a quarter of the width, minutes of training: this shows that the parts\n"
        "work together, not how much pretraining is worth.\n"
        f"Curves, tables and how the patches found their places: open {page}"
    )
