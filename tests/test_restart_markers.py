"""Restart markers put into JPEG files: the same coefficients, the markers where they belong, and no damage let through.

The truth is libjpeg-turbo's pixels, and on small images the coefficients of a slow decoder (`tests.jpeg_coefficients`).
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastselfie.cli import status
from fastselfie.pipelines.restart_markers import require_numba, with_restart_markers
from tests.jpeg_coefficients import coded
from tests.photographs import jpeg, noise, picture

pytest.importorskip("numba", reason="numba is not installed")
simplejpeg = pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")

FLAT = np.full((50, 70, 3), 90, np.uint8)
STEP = np.where(np.arange(70)[:, None] < 40, 0, 255).astype(np.uint8) * np.ones((50, 70, 3), np.uint8)


def turbo(image: NDArray[np.uint8], sampling: str) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(image, quality=92, colorsubsampling=sampling)
    return data


def grey_with_factors() -> bytes:
    """Its one component claims two blocks across and down, which mean nothing where nothing is interleaved."""
    data = bytearray(jpeg(picture(40, 51), mode="L"))
    data[data.index(b"\xff\xc0") + 11] = 0x22
    return bytes(data)


CASES: dict[str, bytes] = {
    **{
        f"{kind}, sampling {sampling}, optimize {optimize}": jpeg(
            image, subsampling=sampling, optimize=optimize, quality=quality
        )
        for kind, image, quality in (
            ("picture", picture(61, 83), 90), ("noise", noise(33, 35), 100), ("flat", FLAT, 75),
            ("step", STEP[:, ::-1], 95), ("one pixel", picture(1, 1), 95), ("one row", picture(1, 40), 95),
        )
        for sampling in (0, 1, 2)
        for optimize in (False, True)
    },
    **{f"turbo's {name}": turbo(picture(45, 77), name) for name in ("422", "440", "411")},
    "grey": jpeg(picture(45, 77), mode="L"),
    "grey, optimised": jpeg(noise(45, 77) // 2, mode="L", optimize=True),
    "grey with factors": grey_with_factors(),
    "four components": jpeg(picture(45, 77), mode="CMYK"),
    "markers already": jpeg(picture(61, 83), restart_marker_blocks=3),
    "markers already, a row apart": jpeg(noise(61, 83), restart_marker_rows=1, subsampling=2),
    "markers already, optimised": jpeg(picture(61, 83), restart_marker_blocks=1, optimize=True),
    "extended": jpeg(picture(45, 77)).replace(b"\xff\xc0", b"\xff\xc1", 1),
    "EXIF and a comment": jpeg(picture(45, 77), orientation=6, comment=b"a comment \xff\xda \xff\xdd\x00\x04\x00\x01"),
}  # fmt: skip


def pixels(data: bytes) -> NDArray[np.uint8]:
    """Pillow's, which does not fill up what is missing."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def marked(data: bytes, interval: int) -> bytes:
    result = with_restart_markers(data, interval)
    assert result is not None
    return result


@pytest.mark.parametrize("interval", [1, 2, 4, 5, 12, 65535])
@pytest.mark.parametrize("name", CASES)
def test_pixels_stay_and_again_changes_nothing(name: str, interval: int) -> None:
    result = marked(CASES[name], interval)
    np.testing.assert_array_equal(pixels(result), pixels(CASES[name]))
    assert with_restart_markers(result, interval) == result


@pytest.mark.parametrize("name", CASES)
def test_coefficients_stay_and_markers_are_where_they_belong(name: str) -> None:
    before = coded(CASES[name])
    mcus = [mcu for interval in before.intervals for mcu in interval]
    for interval in (1, 3):
        after = coded(marked(CASES[name], interval))
        assert after.intervals == [mcus[at : at + interval] for at in range(0, len(mcus), interval)]
        assert after.markers == [0xD0 + at % 8 for at in range(-(-len(mcus) // interval) - 1)]


@pytest.mark.parametrize("name", CASES)
def test_the_header_stays_but_for_the_interval_and_lacking_codes(name: str) -> None:
    before, after = (coded(data).segments for data in (CASES[name], marked(CASES[name], 2)))
    assert after[-2] == (0xDD, b"\x00\x02")
    changed = [
        (old, new)
        for old, new in zip([pair for pair in before if pair[0] != 0xDD], after[:-2] + after[-1:], strict=True)
        if old != new
    ]
    for old, new in changed:
        assert "optim" in name
        assert old[0] == new[0] == 0xC4
        assert old[1][0] == new[1][0] < 16  # it is one of DC
        assert sorted(new[1][17:]) == list(range(12))


def test_a_scan_worked_out_by_hand() -> None:
    """Three blocks of DC 1, 1 and 3, and no AC. Codes of DC: 00, 010, 011 for categories 0, 1, 2; of AC: 0, the end."""
    dc = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, *bytes(7), *range(12)])
    before, after = (
        by_hand(dc, 8, 24, interval, scan)
        for interval, scan in (
            # 010 1 0 | 00 0 | 011 10 0, ones; 010 1 0, ones; 010 1 0, ones; 011 11 0, ones
            (None, "01010000 01110011"),
            (1, "01010111 | 01010111 | 01111011"),
        )
    )
    assert with_restart_markers(before, 1) == after
    assert with_restart_markers(before + b"anything", 1) == after


def test_a_table_without_the_code_makes_room_for_the_standard_one() -> None:
    """DC 1 and 2: both differences are 1, of which alone the table has the code, 0; after a marker it is 2."""
    one = bytes([1, *bytes(15), 1])
    before = by_hand(one, 8, 16, None, "010 010 11")  # 0 1 0 | 0 1 0, ones
    standard = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, *bytes(7), *range(12)])
    # 010 1 0, ones; 011 10 0, ones
    assert with_restart_markers(before, 1) == by_hand(standard, 8, 16, 1, "01010111 | 01110011")
    # Without a marker the table stays.
    assert with_restart_markers(before, 2) == by_hand(one, 8, 16, 2, "010 010 11")


def by_hand(dc: bytes, rows: int, columns: int, interval: int | None, scan: str) -> bytes:
    """A grey JPEG file; ``scan`` as bits, with ``|`` for restart markers. Its AC table has one code, 0: the end."""
    parts = [re.sub(" ", "", part) for part in scan.split("|")]
    markers = [bytes([0xFF, 0xD0 + at]) for at in range(len(parts) - 1)] + [b"\xff\xd9"]
    return b"".join(
        [
            b"\xff\xd8\xff\xdb\x00\x43\x00" + bytes([1] * 64),
            bytes([0xFF, 0xC0, 0, 11, 8, 0, rows, 0, columns, 1, 1, 0x11, 0]),
            bytes([0xFF, 0xC4, 0, 2 + 1 + len(dc) + 1 + 17, 0]) + dc + bytes([0x10, 1, *bytes(15), 0]),
            b"" if interval is None else bytes([0xFF, 0xDD, 0, 4, 0, interval]),
            bytes([0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0]),
            *(int(part, 2).to_bytes(len(part) // 8) + end for part, end in zip(parts, markers, strict=True)),
        ]
    )


def test_photographs() -> None:
    if "FASTSELFIE_DATA" not in os.environ:
        pytest.skip("FASTSELFIE_DATA names no folder with imagenet_sample/")
    files = sorted((Path(os.environ["FASTSELFIE_DATA"]) / "imagenet_sample" / "train").rglob("*.JPEG"))
    assert len(files) > 100
    for index, path in enumerate(files[:: len(files) // 40]):
        data = path.read_bytes()
        result = marked(data, (1, 2, 4, 7)[index % 4])
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(result), simplejpeg.decode_jpeg(data))
        np.testing.assert_array_equal(pixels(result), pixels(data))


GOOD = jpeg(picture(40, 50), quality=90, subsampling=2)
SCAN = GOOD.index(b"\xff\xda")
START = SCAN + 14
FRAME = GOOD.index(b"\xff\xc0")
TABLE = GOOD.index(b"\xff\xc4")


def edited(at: int, new: bytes) -> bytes:
    return GOOD[:at] + new + GOOD[at + len(new) :]


REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "no JPEG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a start alone": b"\xff\xd8",
    "progressive": jpeg(picture(40, 50), progressive=True),
    "arithmetic coding": edited(FRAME, b"\xff\xc9"),
    "12 bits": edited(FRAME + 4, b"\x0c"),
    "no rows yet": edited(FRAME + 5, b"\x00\x00"),
    "no columns": edited(FRAME + 7, b"\x00\x00"),
    "a sampling factor of 0": edited(FRAME + 11, b"\x02"),
    "a sampling factor of 5": edited(FRAME + 11, b"\x51"),
    "too many blocks": edited(FRAME + 11, b"\x44"),
    "a component twice": edited(FRAME + 13, b"\x01"),
    "two frames": GOOD[:SCAN] + GOOD[FRAME : FRAME + 19] + GOOD[SCAN:],
    "no frame": GOOD[:FRAME] + GOOD[FRAME + 19 :],
    "a scan of one of three components": GOOD[:SCAN] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + GOOD[START:],
    "a scan of other components": edited(SCAN + 5, b"\x09"),
    "a scan of some coefficients": edited(START - 2, b"\x05"),
    "a scan of some bits": edited(START - 1, b"\x01"),
    "no such table": edited(SCAN + 6, b"\x20"),
    "a table of class 2": edited(TABLE + 4, b"\x20"),
    "a table with more codes than there are": edited(TABLE + 5, b"\x03"),
    "a table that is cut off": edited(TABLE + 4 + 16, b"\xff"),
    "a table of DC with a category of 255": edited(TABLE + 4 + 17 + 11, b"\xff"),
    "no quantisation": GOOD.replace(b"\xff\xdb", b"\xff\xe5"),
    "an interval of one byte": GOOD[:SCAN] + b"\xff\xdd\x00\x03\x01" + GOOD[SCAN:],
    "a height after the scan": GOOD[:SCAN] + b"\xff\xdc\x00\x04\x00\x28" + GOOD[SCAN:],
    "bytes between segments": GOOD[:SCAN] + b"\x00" + GOOD[SCAN:],
    "a segment beyond the end": GOOD[: SCAN + 6],
    "no end": GOOD[:-2],
    "half an end": GOOD[:-1],
    "cut off": GOOD[:-40],
    "cut off, with an end": GOOD[:-40] + b"\xff\xd9",
    "nothing in the scan": GOOD[:START] + b"\xff\xd9",
    "more than the image holds": GOOD[:-2] + b"\x12\x34\xff\xd9",
    "a byte more": GOOD[:-2] + b"\xff\x00\xff\xd9",
    "a marker in the middle": GOOD[: START + 100] + b"\xff\xd0" + GOOD[START + 100 :],
    "the end in the middle": GOOD[: START + 100] + b"\xff\xd9" + GOOD[START + 100 :],
    "a marker at the end": GOOD[:-2] + b"\xff\xd0\xff\xd9",
    "markers that are not there": GOOD[:SCAN] + b"\xff\xdd\x00\x04\x00\x02" + GOOD[SCAN:],
    "a code of ones": edited(START + 50, b"\xff\x00" * 20),
    "another scan": GOOD[:-2] + GOOD[SCAN:],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_unusual_or_damaged_is_left(name: str) -> None:
    assert with_restart_markers(REFUSED[name], 4) is None


@pytest.mark.parametrize("change", [(0xD0, 0xD1), (0xD1, 0xD0), (0xD7, 0xD6)])
def test_markers_out_of_order_are_refused(change: tuple[int, int]) -> None:
    data = jpeg(picture(61, 83), restart_marker_blocks=4)
    old, new = (bytes([0xFF, marker]) for marker in change)
    assert data.count(old) > 0
    assert with_restart_markers(data, 2) is not None
    assert with_restart_markers(data.replace(old, new, 1), 2) is None


def test_fill_bytes_before_markers_and_what_follows_the_end_are_dropped() -> None:
    data = jpeg(picture(61, 83), restart_marker_blocks=4)
    at = data.index(b"\xff\xda")
    filled = data[:at] + b"\xff\xff" + data[at : at + 14]
    filled += re.sub(b"(\xff[\xd0-\xd9])", b"\xff\xff\\1", data[at + 14 :])
    assert len(filled) > len(data) + 20
    assert with_restart_markers(filled, 3) == with_restart_markers(data + b"\xff\xd8 more", 3) == marked(data, 3)


def test_the_last_of_two_tables_of_one_name_counts() -> None:
    other = bytes([0x00, 1, *bytes(15), 0])
    data = GOOD[:TABLE] + b"\xff\xc4" + (2 + len(other)).to_bytes(2) + other + GOOD[TABLE:]
    np.testing.assert_array_equal(pixels(marked(data, 2)), pixels(GOOD))


@pytest.mark.parametrize("interval", [-1, 0, 65536])
def test_intervals_that_no_file_can_name(interval: int) -> None:
    with pytest.raises(ValueError, match=f"interval is {interval}"):
        with_restart_markers(GOOD, interval)


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """One to three bits flipped, a byte replaced, a few left out or put in, or an end too early."""
    kind, at = generator.integers(4), int(generator.integers(2, len(data)))
    spoilt, size = bytearray(data), int(generator.integers(1, 4))
    if kind == 0:
        for place in generator.integers(2, len(data), size):
            spoilt[place] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        spoilt[at] = (0xFF, 0x00, 0xD0, 0x01)[generator.integers(4)]
    elif kind == 2:
        spoilt[at : at + int(generator.integers(4))] = generator.bytes(size)
    else:
        return data[:at] + b"\xff\xd9" * int(generator.integers(2))
    return bytes(spoilt)


def test_damage_is_refused_or_changes_nothing() -> None:
    """What is taken decodes as it would without markers; where libjpeg refuses it, it still does."""
    generator, taken = np.random.default_rng(5), 0
    kinds = [data for name, data in CASES.items() if len(data) < 8000]
    for index in range(6000):
        data = damaged(kinds[index % len(kinds)], generator)
        result = with_restart_markers(data, int(generator.integers(1, 6)))
        if result is not None:
            taken += 1
            assert outcome(result) == outcome(data)
    assert 300 < taken < 3000


def outcome(data: bytes) -> bytes | None:
    """The pixels with their shape; None where Pillow refuses it."""
    try:
        image = pixels(data)
    except Exception:  # damaged headers make it raise errors of several kinds
        return None
    return str(image.shape).encode() + image.tobytes()


def test_further_pictures_behind_the_image_are_dropped_with_their_index() -> None:
    file, (first, second) = io.BytesIO(), (Image.fromarray(picture(45, 77, seed)) for seed in (0, 1))
    first.save(file, "MPO", save_all=True, append_images=[second])
    with Image.open(file) as before, Image.open(io.BytesIO(marked(file.getvalue(), 2))) as after:
        assert (before.format, after.format) == ("MPO", "JPEG")
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


def test_a_full_disk_keeps_nothing_from_being_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import numba

    from fastselfie.pipelines.huffman_tables import compiled

    def full(*paths: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "replace", full)
    twice = compiled(doubled)
    assert [twice(21), twice(22)] == [42, 44]
    assert not list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("size", [0, 40])
def test_what_a_crash_left_of_compiled_code_is_passed_over(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import numba

    from fastselfie.pipelines.huffman_tables import compiled

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert compiled(doubled)(21) == 42
    (kept,) = tmp_path.rglob(f"*.{kind}")
    kept.write_bytes(kept.read_bytes()[:size])
    assert compiled(doubled)(21) == 42


def doubled(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("why", ["is not there", "Numba needs NumPy 2.5 or less.\nGot NumPy 3.0."])
def test_without_numba_it_is_told_before_anything_is_written(
    why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise ImportError(why)

    require_numba()
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "one.jpg").write_bytes(GOOD)
    monkeypatch.setattr(importlib, "import_module", absent)
    words = ["prepare", str(tmp_path / "photographs"), str(tmp_path / "packed"), "--recode", "markers"]
    assert status(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fastselfie[markers]'" in line
    assert " ".join(why.split()) in line
    assert not (tmp_path / "packed").exists()
