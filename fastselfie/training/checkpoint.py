"""Checkpoints: ``checkpoints/step-000001000/`` with weights, optimiser state and a manifest of checksums.

A checkpoint is written under another name, flushed, and renamed, so a folder of the right name is whole unless the
disk lost it later; that is what the checksums are for. Reading falls back from a damaged one to the one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastselfie.errors import UserError
from fastselfie.files import sync_folder, write_bytes
from fastselfie.models.weights import to_safetensors

_PREFIX = "step-"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        step: optimiser steps done. weights: the network's state. training: optimiser and running-statistics tensors.
        window: sums of the half-finished log window.
    """

    step: int
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    window: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint below ``folder`` and remove all but the ``keep`` newest.

    Raises:
        UserError: it could not be written; older checkpoints are as they were and nothing half-written is left.
    """
    final = folder / f"{_PREFIX}{checkpoint.step:09d}"
    partial = folder / f".{final.name}.partial"
    files = {
        "model.safetensors": to_safetensors(checkpoint.weights),
        "training.safetensors": to_safetensors(checkpoint.training),
        "state.json": json.dumps({"step": checkpoint.step, "window": checkpoint.window}).encode(),
    }
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            write_bytes(partial / name, data)
        write_bytes(partial / _MANIFEST, json.dumps(manifest, indent=2).encode())
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync_folder(folder)
        _remove_old(folder, checkpoint.step, keep)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        newest = max(saved_steps(folder), default=None)
        left = "there is no earlier one" if newest is None else f"the one of step {newest} is as it was"
        raise UserError(
            f"{folder}: cannot write the checkpoint of step {checkpoint.step} ({error.strerror}); {left};"
            " make room and run the same command again"
        ) from error


def _remove_old(folder: Path, newest: int, keep: int) -> None:
    """Keep ``keep`` checkpoints up to step ``newest``, none beyond: training fell back from those, they are damaged."""
    steps = saved_steps(folder)
    for step in [*[s for s in steps if s > newest], *[s for s in steps if s <= newest][:-keep]]:
        shutil.rmtree(folder / f"{_PREFIX}{step:09d}")


def newest_whole(folder: Path, warn: Callable[[str], None]) -> int | None:
    """The step of the newest whole checkpoint below ``folder``; None where there is none at all.

    Args:
        warn: told one line for every damaged checkpoint that is passed over.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    damaged = []
    for step in reversed(saved_steps(folder)):
        try:
            load(folder, step)
        except UserError as error:
            damaged.append(str(error))
        else:
            for line in damaged:
                warn(f"{line}; falling back to the one of step {step}")
            return step
    if damaged:
        raise UserError(f"{damaged[0]}, and so is every other; remove the run's folder to start it again")
    return None


def load(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of that step below ``folder``.

    Raises:
        UserError: it is damaged or not there.
    """
    try:
        return _load(folder / f"{_PREFIX}{step:09d}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder}: the checkpoint of step {step} is damaged ({error})") from None


def remove_partial(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    for partial in folder.glob(f".{_PREFIX}*.partial"):
        shutil.rmtree(partial)


def _load(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / _MANIFEST).read_bytes())
    files = {name: (folder / name).read_bytes() for name in manifest}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest[name]:
            raise ValueError(f"{name} does not match its checksum")
    state = json.loads(files["state.json"])
    return Checkpoint(
        step=state["step"], window=state["window"],
        weights=safetensors.torch.load(files["model.safetensors"]),
        training=safetensors.torch.load(files["training.safetensors"]),
    )  # fmt: skip


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints below ``folder``, ascending."""
    names = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    return sorted(int(name) for name in names if name.isdigit())
