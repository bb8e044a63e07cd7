"""How DALI decodes JPEG images on a GPU, where nvImageCodec does it, and what that is known to get wrong."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, TypeAlias

Regions: TypeAlias = Literal["auto", "on", "off"]
HARDWARE_SHARE = 0.65
"""DALI's own default."""
_FAILS_ON_REGIONS = "0.9.0."
"""Versions of nvImageCodec that are reported to end the process at the first region, or to fail, by GPU: issue 55."""


@dataclass(frozen=True, kw_only=True)
class GpuDecoding:
    """How a GPU decodes JPEG images; a CPU has nothing of it.

    Attributes:
        hardware_share: of a batch's images that the hardware decoder takes, where there is one. Which images those are
            depends on the batch, and its pixels are not quite those of the other: 0 is the repeatable one.
        regions: whether of an image that is cropped at random that part alone is decoded, as far as its format allows,
            or all of it.
    """

    hardware_share: float = HARDWARE_SHARE
    regions: bool = True


BY_DEFAULT = GpuDecoding()


def gpu_decoding(regions: Regions = "auto", hardware_share: float = HARDWARE_SHARE) -> GpuDecoding:
    """As it is asked for, with regions where they may be."""
    return GpuDecoding(hardware_share=hardware_share, regions=choose_regions(regions)[0])


def choose_regions(asked: Regions) -> tuple[bool, str]:
    """`GpuDecoding.regions`, and why: a phrase for a message."""
    found = nvimagecodec_version()
    if asked != "auto":
        return asked == "on", "asked for"
    if found is not None and found.startswith(_FAILS_ON_REGIONS):
        return False, f"nvImageCodec {found} may crash on regions"
    return True, "less to decode"


def nvimagecodec_version() -> str | None:
    """The version of nvImageCodec that is installed, None without it."""
    for cuda in ("13", "12"):
        with suppress(PackageNotFoundError):
            return version(f"nvidia-nvimgcodec-cu{cuda}")
    return None
