"""From bytes on disk to views of images on the device. Knows views, not tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastselfie.pipelines.batches import Loader as Loader
    from fastselfie.pipelines.standalone import loader as loader

__all__ = ["Loader", "loader"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: processes that only write shards need no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastselfie.pipelines import standalone

    return getattr(standalone, name)
