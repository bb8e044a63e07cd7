"""Weights by name: loaded strictly, and as the bytes of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor, nn


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], fresh: tuple[str, ...] = ()) -> None:
    """Copy ``weights`` into ``network``. Names that they lack must begin with one of ``fresh``, and stay as they are.

    Raises:
        KeyError: a name is missing or unknown. RuntimeError: a shape differs.
    """
    # Kept whole for its metadata: without it torch takes the file for an old one and adds the batch counters back.
    state = network.state_dict()
    unknown = [name for name in weights if name not in state]
    missing = [name for name in state if name not in weights and not name.startswith(fresh)]
    if unknown or missing:
        raise KeyError(f"weights do not fit: unknown {unknown[:3]}, missing {missing[:3]}")
    state.update(weights)
    network.load_state_dict(state)


def to_safetensors(weights: Mapping[str, Tensor]) -> bytes:
    """A .safetensors file of ``weights``, on any device and of any strides: the format has row-major order alone."""
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()})


def fingerprint(file: bytes) -> str:
    """The beginning of SHA-256, 16 hexadecimal digits: tells one file of weights from another."""
    return hashlib.sha256(file).hexdigest()[:16]
