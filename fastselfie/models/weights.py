"""Loading weights by name, strictly."""

from __future__ import annotations

from collections.abc import Mapping

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
