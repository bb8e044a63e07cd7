"""EXIF that leaves open which way is up is refused before it is decoded: some of it ends a process that DALI is in."""

from __future__ import annotations

import struct
import zlib

import pytest

from fastselfie.pipelines.image_bytes import fault
from tests.photographs import jpeg, picture, png

UNCLEAR = "has damaged EXIF, or twice, and which way is up is not clear"
JPEG, PNG = jpeg(picture(60, 50)), png(picture(60, 50))
FRAME, SCAN = JPEG.index(b"\xff\xc0"), JPEG.index(b"\xff\xda")
ORIENTATION, MAKE, RESOLUTION, OTHER = 0x0112, 0x010F, 0x011A, 0x9999
SHORT, TEXT, RATIONAL = 3, 2, 5


def entry(order: str, tag: int, kind: int, count: int, value: int) -> bytes:
    packed = struct.pack(order + "HH", value, 0) if kind == SHORT else struct.pack(order + "I", value)
    return struct.pack(order + "HHI", tag, kind, count) + packed


def exif(orientation: int, *others: tuple[int, int, int, int], claimed: int | None = None, order: str = "<") -> bytes:
    """A TIFF directory: the orientation, then ``others``. claimed: how many entries it says that it has."""
    entries = [(ORIENTATION, SHORT, 1, orientation), *others]
    count = len(entries) if claimed is None else claimed
    directory = struct.pack(order + "H", count) + b"".join(entry(order, *each) for each in entries) + bytes(4)
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8) + directory


def in_jpeg(*blocks: bytes, at: int = 2) -> bytes:
    segments = [b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block for block in blocks]
    return JPEG[:at] + b"".join(segments) + JPEG[at:]


def in_png(*blocks: bytes) -> bytes:
    chunks = [
        struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
        for block in blocks
    ]
    return PNG[:33] + b"".join(chunks) + PNG[33:]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("others", "claimed"),
    [([], 3), ([], 65535), ([(MAKE, TEXT, 100, 5000)], None), ([(RESOLUTION, RATIONAL, 1, 5000)], None)],
)
def test_a_directory_that_breaks_off_behind_the_orientation(
    others: list[tuple[int, int, int, int]], claimed: int | None, order: str
) -> None:
    """A PNG image of it ended the process at once; a JPEG image where its pixels were damaged too."""
    for orientation, expected in [(6, UNCLEAR), (8, UNCLEAR), (1, None), (3, None)]:
        block = exif(orientation, *others, claimed=claimed, order=order)
        assert [fault(in_png(block)), fault(in_jpeg(block))] == [expected, expected]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_whole_exif_is_taken(orientation: int, order: str) -> None:
    within = (MAKE, TEXT, 20, 8), (RESOLUTION, RATIONAL, 1, 8), (OTHER, TEXT, 100, 5000), (MAKE, TEXT, 4, 0x414243)
    for block in (exif(orientation, order=order), exif(orientation, *within, order=order)):
        assert [fault(file) for file in (in_png(block), in_jpeg(block), in_jpeg(block, block))] == [None] * 3


def test_exif_that_contradicts_itself() -> None:
    """DALI's readers take the first and the last of two segments; they decode alike if both are on the same side."""
    upright, lying = exif(1), exif(6)
    for blocks in ((upright, lying), (lying, upright), (upright, lying, upright)):
        for at in (2, FRAME, SCAN):
            assert fault(in_jpeg(*blocks, at=at)) == UNCLEAR
    assert fault(in_jpeg(lying, exif(8))) is None
    assert fault(in_jpeg(upright, exif(3))) is None
    assert fault(in_png(upright)) is None
    assert fault(in_png(upright, upright)) == UNCLEAR


def test_exif_of_a_png_image_that_opencv_passes_over() -> None:
    """Each ended the process where the image as it is stored is higher than wide."""
    lying, upright = exif(6, order=">"), exif(3, order=">")
    for block, expected in [(lying, UNCLEAR), (upright, None)]:
        whole = in_png(block)
        checksum = 33 + 8 + len(block)
        assert fault(whole) is None
        assert fault(whole[:checksum] + bytes(4) + whole[checksum + 4 :]) == expected
        assert fault(in_png(b"MI" + block[2:])) == expected
        animation = struct.pack(">I", 8) + b"acTL" + struct.pack(">II", 2, 0)
        animation += struct.pack(">I", zlib.crc32(animation[4:]))
        assert fault(whole[: checksum + 4] + animation + whole[checksum + 4 :]) == expected


def test_exif_behind_the_frame() -> None:
    """DALI turns the image by it, libjpeg-turbo's decoder does not."""
    assert fault(in_jpeg(exif(6), at=SCAN)) == UNCLEAR
    assert fault(in_jpeg(exif(3), at=SCAN)) is None
