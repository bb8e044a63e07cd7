"""Which files are images that can be decoded here, and which are images that first have to be converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_SUFFIXES = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def is_image(name: str, every: bool = False) -> bool:
    """Whether a file of that name is read, or of ``every`` format read by ``prepare``. Hidden files are not."""
    suffixes = SUFFIXES + OTHER_SUFFIXES if every else SUFFIXES
    return name.lower().endswith(suffixes) and not name.startswith(".")


def other_suffix(name: str) -> str | None:
    """The suffix of an image that only ``fastselfie prepare`` reads."""
    suffix = PurePath(name).suffix.lower()
    return suffix if suffix in OTHER_SUFFIXES and not name.startswith(".") else None


def passed_over(counts: Mapping[str, int]) -> str:
    """A phrase that says how many images of each `other_suffix` are left out; empty where there are none."""
    total = sum(counts.values())
    if not total:
        return ""
    suffixes = ", ".join(sorted(suffix for suffix, count in counts.items() if count))
    files, them = ("file", "it") if total == 1 else ("files", "them")
    other = "another format" if total == 1 else "other formats"
    return f"{total} {files} of {other} ({suffixes}) passed over; fastselfie prepare converts {them}"
