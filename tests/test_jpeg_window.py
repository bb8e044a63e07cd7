"""A JPEG file cut to a window: against the whole image, pixel by pixel."""

from __future__ import annotations

import io
import itertools
import re
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastselfie.pipelines import jpeg_window
from fastselfie.pipelines.jpeg_header import JpegHeader, jpeg_header
from fastselfie.pipelines.jpeg_segments import restart_interval, with_table
from fastselfie.pipelines.jpeg_window import WORTH, Part
from tests.photographs import jpeg, noise, picture

SHAPES = [(90, 128), (100, 97), (64, 64), (33, 250), (250, 33), (16, 48), (17, 49), (64, 36), (250, 4)]
SUBSAMPLINGS = {0: (8, 8), 1: (8, 16), 2: (16, 16)}  # Pillow's, with rows and columns of an MCU


def cut(data: NDArray[np.uint8], header: JpegHeader, window: tuple[int, int, int, int], worth: int = 1) -> Part | None:
    """Also where it saves little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg_window, "WORTH", worth)
        return jpeg_window.cut(data, header, window)


def stored(data: bytes) -> tuple[NDArray[np.uint8], JpegHeader]:
    header = jpeg_header(memoryview(data))
    assert header is not None
    return np.frombuffer(data, np.uint8), header


def pixels(data: NDArray[np.uint8] | bytes) -> NDArray[np.uint8]:
    """Pillow's, strictly: it refuses what ends early."""
    with Image.open(io.BytesIO(bytes(data))) as image:
        return np.array(image.convert("RGB"))


def segmented(image: NDArray[np.uint8], **options: Any) -> bytes:
    """As `prepare` writes it, with the interval as ``restart_marker_blocks``."""
    return with_table(jpeg(image, **options))


def mixed(rows: int, columns: int) -> NDArray[np.uint8]:
    return noise(rows, columns) // 2 + picture(rows, columns) // 2


def windows(rows: int, columns: int, mcu: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """At the corners of MCUs, a pixel beside them, and at random."""
    generator = np.random.default_rng(0)
    edges = [
        sorted({at + by for at in range(0, side + 1, step) for by in (-1, 0, 1) if 0 <= at + by <= side} | {side})
        for side, step in ((rows, mcu[0]), (columns, mcu[1]))
    ]
    found = []
    for _ in range(200):
        (top, bottom), (left, right) = (sorted(generator.choice(axis, 2, replace=False)) for axis in edges)
        found.append((int(top), int(left), int(bottom - top), int(right - left)))
    return found


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_of_the_part_is_that_of_the_whole(shape: tuple[int, int], subsampling: int) -> None:
    mcu = SUBSAMPLINGS[subsampling]
    interval = restart_interval(shape[1], mcu[1])
    data, header = stored(segmented(mixed(*shape), subsampling=subsampling, restart_marker_blocks=interval))
    whole, smaller = pixels(data), []
    assert header.mcu == mcu
    for window in windows(*shape, mcu):
        part = cut(data, header, window)
        if part is not None:
            (row, column, height, width), image = window, pixels(part.data)
            assert image.shape == (part.rows, part.columns, 3)
            expected = whole[row : row + height, column : column + width]
            np.testing.assert_array_equal(image[part.row :, part.column :][:height, :width], expected)
            smaller.append(image.size / whole.size)
    assert len(smaller) > 50
    assert min(smaller) < 0.5


def test_grey_is_cut_block_by_block() -> None:
    data, header = stored(segmented(mixed(70, 90), mode="L", restart_marker_blocks=4))
    part = cut(data, header, (20, 40, 30, 20))
    assert part is not None
    # 12 blocks across are three segments: rows 16 to 55, columns 32 to 63; of the image's own pixels, two before.
    assert (part.rows, part.columns, part.row, part.column) == (40, 32, 4, 8)
    np.testing.assert_array_equal(pixels(part.data), pixels(data)[16:56, 32:64])


def test_no_more_than_the_segments_that_are_touched() -> None:
    """By hand: MCUs of 16 pixels in pairs, 5 pairs by 6 rows; a pixel around the window counts."""
    data, header = stored(segmented(mixed(96, 160), subsampling=2, restart_marker_blocks=2))
    shapes = {
        (17, 33, 14, 30): (16, 32, 1, 1),  # within one segment
        (16, 33, 14, 30): (32, 32, 16, 1),  # its first row depends on the segment above
        (17, 33, 14, 31): (16, 64, 1, 1),  # its last column on the one at the right
        (0, 0, 15, 31): (16, 32, 0, 0),  # beyond the corner there is nothing
        (81, 129, 15, 31): (16, 32, 1, 1),
    }
    for window, expected in shapes.items():
        part = cut(data, header, window)
        assert part is not None
        assert (part.rows, part.columns, part.row, part.column) == expected


def coded(data: NDArray[np.uint8] | bytes) -> bytes:
    """The coded pixels and the end."""
    file = bytes(data)
    return file[file.rindex(b"\xff\xda\x00\x0c") + 14 :]


def test_a_part_is_a_file_whose_markers_are_in_order() -> None:
    data, header = stored(
        segmented(mixed(200, 320), subsampling=2, restart_marker_blocks=2, comment=b"\xff\xd3\xff\xda")
    )
    part = cut(data, header, (40, 60, 120, 200))
    assert part is not None
    markers = [second for first, second in itertools.pairwise(coded(part.data)) if first == 0xFF and second != 0]
    segments = (part.rows // 16) * (part.columns // 32)
    assert markers == [0xD0 + number % 8 for number in range(segments - 1)] + [0xD9]
    assert cut(*stored(bytes(part.data)), (60, 70, 30, 40)) is None  # the table is of the whole


def test_the_table_is_an_application_segment_with_the_sizes() -> None:
    plain = jpeg(mixed(90, 150), subsampling=2, restart_marker_blocks=2)
    file = with_table(plain)
    sizes = [len(segment) + 2 for segment in re.split(b"\xff[\xd0-\xd9]", coded(plain))[:-1]]
    assert len(sizes) == 6 * 5
    table = b"FastSelfie\0" + struct.pack("<30H", *sizes)
    at = plain.rindex(b"\xff\xda\x00\x0c")
    assert file == plain[:at] + b"\xff\xe9" + struct.pack(">H", 2 + len(table)) + table + plain[at:]
    np.testing.assert_array_equal(pixels(file), pixels(plain))
    assert with_table(file) == file


WINDOW = (40, 50, 30, 40)
GOOD = segmented(mixed(96, 160), subsampling=2, restart_marker_blocks=2)
PLAIN = jpeg(mixed(96, 160), subsampling=2, restart_marker_blocks=2)
UNCUT = {
    "no table": PLAIN,
    "no markers": segmented(mixed(96, 160)),
    "segments across rows": segmented(mixed(96, 160), subsampling=2, restart_marker_blocks=3),
    "progressive": segmented(mixed(96, 160), subsampling=2, restart_marker_blocks=2, progressive=True),
    "the whole": segmented(mixed(64, 80), restart_marker_blocks=2),
    "another size in the table": GOOD.replace(b"FastSelfie\0", b"FastSelfie\0\1\1", 1),
    "another application's segment": GOOD.replace(b"FastSelfie\0", b"SlowSelfie\0", 1),
    "more behind it": GOOD + GOOD,
    "cut off": GOOD[:-100],
    "a header without end": GOOD[:400],
}


@pytest.mark.parametrize("name", UNCUT)
def test_what_is_left_whole(name: str) -> None:
    window = (0, 0, 63, 79) if name == "the whole" else WINDOW
    assert cut(*stored(UNCUT[name]), window) is None


def test_no_table_of_a_file_that_is_none_or_has_a_damaged_marker() -> None:
    for file in (b"", b"no image", PLAIN[:-2], PLAIN[:300], PLAIN.replace(b"\xff\xd3", b"\xff\x00", 1)):
        assert with_table(file) == file


def test_little_is_not_worth_it() -> None:
    """By hand: 20 x 20 MCUs in pairs; the window is the last 15 rows of them, and a row above, of the first pairs."""
    data, header = stored(segmented(mixed(320, 320), subsampling=2, restart_marker_blocks=2))
    for pairs in range(1, 11):
        window = (81, 0, 239, 32 * pairs - 2)
        saved = 20 * 20 * 256 - 15 * pairs * 2 * 256
        assert (jpeg_window.cut(data, header, window) is None) == (saved < WORTH)
        assert cut(data, header, window, worth=saved) is not None
        assert cut(data, header, window, worth=saved + 1) is None


def test_one_scan_a_channel_is_left_whole() -> None:
    """What `jpegtran -scans` writes: each channel by itself. By hand, the frame says three and the scan one."""
    data = bytearray(GOOD)
    at = data.rindex(b"\xff\xda\x00\x0c")
    data[at + 2 : at + 14] = bytes([0, 8, 1, 1, 0, 0, 63, 0])
    assert cut(*stored(bytes(data)), WINDOW) is None


@pytest.mark.parametrize("columns", range(1, 700, 7))
@pytest.mark.parametrize("mcu", [8, 16, 32])
def test_intervals_divide_a_row(columns: int, mcu: int) -> None:
    across = len(range(0, columns, mcu))
    interval = restart_interval(columns, mcu)
    assert across % interval == 0
    assert interval * mcu <= 32
    assert not [more for more in range(interval + 1, 32 // mcu + 1) if across % more == 0]


def test_damaged_segments_decode_as_they_do_in_the_whole_file() -> None:
    """A flipped bit ends its segment's sense, and no other's."""
    data, header = stored(GOOD)
    generator, changed = np.random.default_rng(1), 0
    start = len(data) - len(coded(data))
    for _ in range(60):
        damaged = data.copy()
        damaged[generator.integers(start, len(data) - 2)] ^= 1 << generator.integers(8)
        part = cut(damaged, header, WINDOW)
        if part is not None:
            row, column, height, width = WINDOW
            image, whole = pixels(part.data), pixels(damaged)
            changed += int((whole != pixels(data)).any())
            expected = whole[row : row + height, column : column + width]
            np.testing.assert_array_equal(image[part.row :, part.column :][:height, :width], expected)
    assert changed > 40


def test_a_damaged_header_is_cut_or_not() -> None:
    """Whatever it says, no other error comes of it, and no part is larger than the image that it speaks of."""
    generator, cuts = np.random.default_rng(2), 0
    start = len(GOOD) - len(coded(GOOD))
    for _ in range(3000):
        damaged = bytearray(GOOD)
        for at in generator.integers(0, start, generator.integers(1, 4)):
            damaged[at] = generator.integers(256)
        header = jpeg_header(memoryview(damaged))
        if header is not None and header.usual:
            part = cut(np.frombuffer(damaged, np.uint8), header, WINDOW)
            if part is not None:
                assert part.rows <= header.rows
                assert part.columns <= header.columns
                cuts += 1
    assert 500 < cuts < 2900
