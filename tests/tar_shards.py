"""Shards as the `webdataset` library writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

webdataset = pytest.importorskip("webdataset")


def content(seed: int) -> bytes:
    """Bytes between a JPEG's ends; nothing is decoded here."""
    return b"\xff\xd8\xff" + np.random.default_rng(seed).bytes(200 + 97 * seed) + b"\xff\xd9"


def write(path: Path, samples: Sequence[Mapping[str, Any]]) -> Path:
    """A shard by the `webdataset` library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as sink:
        for sample in samples:
            sink.write(sample)
    return path


def labelled(first: int, labels: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"__key__": f"n{first + at:05d}", "jpg": content(first + at), "cls": str(label).encode()}
        for at, label in enumerate(labels)
    ]


def with_json(values: Sequence[object]) -> list[dict[str, Any]]:
    return [
        {"__key__": f"{number}", "jpeg": content(number), "json": json.dumps(value).encode()}
        for number, value in enumerate(values)
    ]
