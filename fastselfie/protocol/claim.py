"""Whose a protocol's folder is: of which settings, images and pretrained weights, and of one process at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fastselfie.config import FinetuneConfig, PretrainConfig, contrast, flag, require
from fastselfie.errors import UserError
from fastselfie.evaluation.pretrained import read_encoder
from fastselfie.files import LOCK, held, occupied, replace_json
from fastselfie.pipelines.source import Source
from fastselfie.protocol.plan import Planner
from fastselfie.protocol.record import FILE, is_protocol
from fastselfie.protocol.settings import Asked, ProtocolConfig
from fastselfie.protocol.task import read_object
from fastselfie.training.config_file import with_defaults
from fastselfie.training.run_folder import FREE, differs
from fastselfie.training.starting_point import read_starting_point
from fastselfie.training.versions import versions

# What a protocol may be asked more or less of when it goes on: runs that are there stay what they are. Images and
# weights may lie elsewhere by then; that they are the same ones is among the facts.
_GROWS = frozenset({"labels", "seeds", "encoders", "variants", "probes", "jobs", "out", "data", "pretrained"})


def facts_of(asked: Asked, source: Source) -> dict[str, Any]:
    """Checksums of what all runs of a protocol have in common: its images, and the weights that it starts from.

    Raises:
        UserError: the run or file to start from is unfinished or damaged.
    """
    run, file = asked.protocol.pretrained, asked.pretrain.pretrained
    return {
        "images": source.fingerprint(), "contents": source.probes(),
        "pretrained": read_encoder(run).fingerprint if run is not None else None,
        "start": read_starting_point(asked.pretrain, file).fingerprint if file is not None else None,
    }  # fmt: skip


@contextmanager
def claimed(planner: Planner, classes: int, facts: dict[str, Any]) -> Iterator[None]:
    """Make the folder, or check that it holds a protocol of the same settings, which may now be asked for more; and
    keep every other process from working in it.

    Args:
        planner: of what is asked. classes: of the data. facts: see `facts_of`.

    Raises:
        UserError: it holds something else, or another process works in it; names the first setting that differs.
    """
    folder, asked, protocol = planner.folder, planner.asked, planner.asked.protocol
    settings = json.loads(json.dumps(dataclasses.asdict(asked) | {"recipe": None}, default=str))
    before = _before(folder, settings, facts)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = stack.enter_context(held(folder / LOCK))
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None
        require(free, f"--out {folder}: another fastselfie protocol works in it; wait for it or stop it")
        replace_json(
            folder / FILE,
            {name: [] for name in ("runs", "pretrainings", "probes", "trials", "failures", "missing")} | before | {
                "format": 1, "recipe": protocol.recipe, "data": protocol.data or "CIFAR-10", "classes": classes,
                "labels": protocol.label_shares, "encoders": protocol.encoder_names,
                "seeds": list(range(protocol.seeds)), "variants": planner.variants,
                "asked": len(planner.kinds()) * protocol.seeds,
                "settings": settings, "facts": facts, "made_by": versions(),
            },
        )  # fmt: skip
        yield


def _before(folder: Path, settings: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder's record says, nothing where there is none. Raises `UserError` where it is of something else."""
    if not is_protocol(folder):
        if occupied(folder):
            raise UserError(f"--out {folder}: is not an empty folder and holds no protocol; choose another")
        return {}
    before = read_object(folder / FILE)
    kinds: dict[str, tuple[type[Any], frozenset[str]]] = {
        "protocol": (ProtocolConfig, _GROWS),
        "pretrain": (PretrainConfig, FREE),
        "finetune": (FinetuneConfig, FREE),
    }
    for part, (kind, free) in kinds.items():
        _compare(folder, part, with_defaults(kind, before["settings"][part]), settings[part], free)
    named = {"images": "--data", "contents": "--data", "pretrained": "--from", "start": "--pretrain.from"}
    for name, then in before.get("facts", {}).items():  # a protocol of an earlier version has none
        if differs(then, facts[name]):
            raise UserError(
                f"--out {folder}: its runs had another {named[name]} (checksum {then}, now {facts[name]}), and would"
                " not compare; name that again or choose another folder"
            )
    return before


def _compare(folder: Path, part: str, before: Mapping[str, Any], now: Mapping[str, Any], free: Iterable[str]) -> None:
    for name, value in now.items():
        if name not in free and before.get(name) != value:
            said = flag(name, "" if part == "protocol" else part)
            raise UserError(
                f"--out {folder}: holds a protocol with {contrast(said, before.get(name), value)};"
                " repeat its settings to go on with it or choose another folder"
            )
