"""What `report`, `growth` and `modes` have in common: options, and what comes of them on this machine."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.training_step import ENDLESS
from fastselfie.config import PretrainConfig, require
from fastselfie.errors import UserError
from fastselfie.recipes import recipe
from fastselfie.training.hardware import choose_device, resolve, resolved, set_convolutions
from fastselfie.training.memory import keep_freed_memory

_CPU_BATCH, _MOST_PROCESSES = 32, 64
_SMOKE: dict[str, Any] = {"width": 1 / 16, "heads": 4, "batch_size": 4}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How everything of one command is measured.

    Attributes:
        config: the recipe with every ``auto`` resolved, for images that lie on the device. chosen: why, by setting.
        round_s: seconds a side and round at least. backend: torch.compile's. without: words in names of sides that are
            left out.
    """

    out: Path
    config: PretrainConfig
    chosen: dict[str, str]
    device: torch.device
    rounds: int
    round_s: float
    backend: str
    processes: int
    smoke: bool
    without: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """For a result file."""
        config = self.config
        return {
            "recipe": config.recipe, "image_size": config.image_size, "patch": config.patch, "width": config.width,
            "batch_size": config.batch_size, "keep": config.keep, "rounds": self.rounds, "round_s": self.round_s,
            "smoke": self.smoke, "backend": self.backend, "processes": self.processes, "chosen": self.chosen,
            "without": self.without,
        }  # fmt: skip

    def left_out(self, side: str) -> str:
        """Why ``side`` is left out; empty where it is not."""
        word = next((word for word in self.without if word in side), None)
        return f"left out by --without {word}" if word is not None else ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of every command that measures."""
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--width", type=float, help="the recipe's when not given")
    parser.add_argument("--batch-size", type=int, help="the recipe's when not given, on a CPU 32")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of FastSelfie's sides")
    parser.add_argument("--rounds", type=int, help="5 when not given")
    parser.add_argument(
        "--without", nargs="+", default=(), metavar="WORD", help="leave out sides with such a word in their name: one"
        " whose kernel faults takes all that come after it with it"
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="tiny shapes and 2 rounds: whether it runs, no timing")


def settle(given: argparse.Namespace) -> Bench:
    """The command's settings on this machine; its folder is there and can be written.

    Raises:
        UserError: an option makes no sense here.
    """
    kind = choose_device(given.device).value
    base, default = recipe(given.recipe).pretrain, 2 if given.smoke else 5
    rounds = default if given.rounds is None else given.rounds
    require(rounds >= 1, f"--rounds {rounds}: must be at least 1")
    processes = getattr(given, "processes", 1)
    most = torch.cuda.device_count() if kind == "cuda" else _MOST_PROCESSES
    require(1 <= processes <= most, f"--processes {processes}: must be from 1 to {most} on this machine")
    change: dict[str, Any] = {
        "device": given.device, "precision": given.precision, "held_out": 0, "crop": "pad", "steps": ENDLESS,
    }  # fmt: skip
    if kind == "cpu":
        keep_freed_memory()
        change["batch_size"] = _CPU_BATCH
    change |= _SMOKE if given.smoke else {}
    asked = {"width": given.width, "batch_size": given.batch_size}
    base = replace(base, **(change | {name: value for name, value in asked.items() if value is not None}))
    batch = base.batch_size
    require(batch % processes == 0, f"--batch-size {batch}: must be a multiple of the {processes} processes")
    choices = resolve(base, kind)
    config = resolved(base, choices)
    set_convolutions(config)  # for the peers as well
    _claim(given.out)
    return Bench(
        out=given.out, config=config, chosen={name: f"{c.value}: {c.why}" for name, c in choices.items()},
        device=torch.device(kind), rounds=rounds, round_s=0.0 if given.smoke else 0.5,
        backend="eager" if given.smoke else "inductor", processes=processes, smoke=given.smoke,
        without=tuple(given.without),
    )  # fmt: skip


def _claim(folder: Path) -> None:
    """Make the folder and try to write into it: minutes of measuring are not to end at its door."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another") from None
