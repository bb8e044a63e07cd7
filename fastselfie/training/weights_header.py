"""What a .safetensors file says of itself, read without torch: the command line asks before it takes its words."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastselfie.config import STAGE_WIDTHS
from fastselfie.errors import UserError

SUFFIX = ".safetensors"
STEM = "stem.conv.weight"
_PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_LARGEST = 100 << 20  # bytes of a header, safetensors' own limit


@dataclass(frozen=True, kw_only=True)
class Header:
    """Shapes of the tensors by name, and the metadata, texts by name."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def is_weights_file(path: Path) -> bool:
    """Whether ``--from`` names a file of weights, whatever kind and there or not, rather than a run's folder."""
    return path.suffix in (SUFFIX, *_PICKLED) and not path.is_dir()


def read_header(path: Path) -> Header:
    """The header of ``path``.

    Raises:
        UserError: it is no safetensors file.
    """
    if path.is_dir():
        raise UserError(f"--from {path}: is a folder; name a file, as fastselfie export {path} --to FILE writes one")
    if path.suffix != SUFFIX:
        raise UserError(
            f"--from {path}: only {SUFFIX} files are read, which need no unpickling; write one with"
            f" safetensors.torch.save_file(model.state_dict(), '{path.stem}{SUFFIX}')"
        )
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= _LARGEST:
                raise ValueError("its header has no length")
            header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", {})
        shapes = {name: tuple(map(operator.index, tensor["shape"])) for name, tensor in header.items()}
    except FileNotFoundError:
        raise UserError(f"--from {path}: there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"--from {path}: is no whole {SUFFIX} file ({error}); export or save it again") from None
    return Header(shapes=shapes, metadata=metadata)


def header_settings(path: Path) -> dict[str, Any]:
    """Settings that become the defaults of a run from ``path``: the width that its tensors have, and of one that
    `fastselfie export` wrote also heads, and the mean and std that its pixels had.

    Raises:
        UserError: it is no safetensors file, or its metadata is damaged.
    """
    header, settings = read_header(path), dict[str, Any]()
    stem = header.shapes.get(STEM)
    if stem:
        settings["width"] = stem[0] / STAGE_WIDTHS[0]
    try:
        if "heads" in header.metadata:
            settings["heads"] = int(header.metadata["heads"])
        for name in ("mean", "std"):
            if name in header.metadata:
                red, green, blue = map(float, json.loads(header.metadata[name]))
                settings[name] = red, green, blue
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"--from {path}: its metadata is damaged ({error}); export it again") from None
    return settings
