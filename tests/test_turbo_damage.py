"""The decoder of libjpeg-turbo on files that are damaged: what it tells, and that nothing ends the process."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastselfie.errors import LocalError
from fastselfie.pipelines.decoder import DaliDecoder
from fastselfie.pipelines.image_bytes import fault
from fastselfie.pipelines.turbo_decoder import TurboDecoder
from fastselfie.pipelines.undecodable import Undecodable
from fastselfie.pipelines.view import View
from tests.photographs import images_of, jpeg, noise, picture, png
from tests.test_photo_pixels import FORMATS
from tests.turbo_runs import GOOD, dali, encoded, resized, turbo, views

pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")

ALL = [make() for make in FORMATS.values()]
BAD = GOOD[:3] + b"nothing that decodes" + GOOD[-2:]


def test_all_that_cannot_be_decoded_is_told_at_once() -> None:
    view, decoder = resized(32), turbo(resized(32), depth=3)
    bad_png = bytearray(png(noise(40, 40)))
    bad_png[60:200] = bytes(140)
    decoder.schedule(encoded([GOOD] * 4, view))
    decoder.schedule(encoded([GOOD, BAD, GOOD, bytes(bad_png)], view))
    decoder.schedule(encoded([GOOD, GOOD, b"\x89PNG"], view))
    expected = decoder.take()
    with pytest.raises(Undecodable) as caught:
        decoder.take()
    assert caught.value.bad == {(0, 1): "is damaged", (0, 3): "is damaged", (1, 2): "is damaged"}
    pixels = views(decoder, encoded([GOOD] * 4, view))
    np.testing.assert_array_equal(pixels, images_of(expected))


def test_what_is_dropped_is_never_seen() -> None:
    view, decoder = resized(32), turbo(resized(32), depth=2)
    for _ in range(3):
        decoder.schedule(encoded([BAD] * 50, view))
        decoder.schedule(encoded([GOOD] * 50, view))
        decoder.drop()
    assert views(decoder, encoded([GOOD], view)).shape == (1, 32, 32, 3)


def test_a_file_that_is_cut_off_behind_its_preview() -> None:
    """The preview in the EXIF segment ends as the file should have; libjpeg-turbo would fill up the rest with grey."""
    exif = Image.Exif()
    exif[0x9286] = jpeg(picture(16, 16)).decode("latin1")
    file = io.BytesIO()
    Image.fromarray(picture(60, 50)).save(file, "JPEG", exif=exif)
    whole = file.getvalue()
    for view in (resized(32), View(size=32)):
        for data in (whole[:-40], whole[: len(whole) * 2 // 3]):
            decoder = turbo(view)
            decoder.schedule(encoded([whole, data], view))
            with pytest.raises(Undecodable) as caught:
                decoder.take()
            assert caught.value.bad == {(0, 1): "is cut off"}
        assert views(turbo(view), encoded([whole + b"other bytes"], view)).std() > 5


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """Flipped bits, a range of zeros or of noise, a piece less, or an end too early."""
    kind, at = generator.integers(5), int(generator.integers(2, len(data)))
    spoilt, size = bytearray(data), int(generator.integers(1, 400))
    if kind == 0:
        for place in generator.integers(0, len(data), 20):
            spoilt[place] ^= 1 << generator.integers(8)
    elif kind == 4:
        return data[:at]
    else:
        spoilt[at : at + size] = (bytes(size), generator.bytes(size), b"")[kind - 1]
    return bytes(spoilt)


def test_no_damage_ends_the_process() -> None:
    """What decodes has the shape that was asked for, whatever is in it; the rest is told."""
    generator, decoder, told = np.random.default_rng(0), turbo(resized(32), batch=1500), 0
    files = [damaged(ALL[index % len(ALL)], generator) for index in range(1500)]
    decoder.schedule(encoded(files, resized(32)))
    with pytest.raises(Undecodable) as caught:
        decoder.take()
    told = len(caught.value.bad)
    assert 300 < told < 1200
    left = [file for at, file in enumerate(files) if (0, at) not in caught.value.bad]
    assert views(turbo(View(size=32), batch=1500), encoded(left[:50], View(size=32))).shape == (50, 32, 32, 3)


def test_damaged_files_are_refused_where_dali_refuses_them() -> None:
    """Among those that come so far: what is no image by its header and its ends is found before either decodes it."""
    generator, view = np.random.default_rng(1), View(size=32)
    photographs = [jpeg(noise(90, 120, seed) // 4 + picture(90, 120, seed) // 2, subsampling=2) for seed in range(4)]
    files = [damaged(photographs[index % 4], generator) for index in range(150)]
    verdicts = [
        tuple(accepts(kind(view, batch=1, threads=1), file, view) for kind in (dali, turbo))
        for file in files
        if fault(file) is None
    ]
    assert len(verdicts) > 60
    assert {(True, True), (False, False)} == set(verdicts)


def accepts(decoder: DaliDecoder | TurboDecoder, file: bytes, view: View) -> bool:
    try:
        views(decoder, encoded([file], view))
    except (LocalError, Undecodable):
        return False
    return True


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"JFIF\0\1", b"JFIF\0\2"),
        (b"\xe0\0\x10JFIF\0\1\1\0\0\1\0\1", b"\xee\0\x10Adobe\1\1\0\0\1\0\5"),
    ],
)
def test_a_version_that_the_library_does_not_know_is_no_damage(before: bytes, after: bytes) -> None:
    """libjpeg warns of a later JFIF, and of an unknown number of Adobe's, and decodes as ever."""
    other = GOOD.replace(before, after, 1)
    assert other != GOOD
    for view in (resized(32), View(size=32)):
        for decoder in (turbo(view), dali(view)):
            expected, pixels = (views(decoder, encoded([file] * 8, view)) for file in (GOOD, other))
            np.testing.assert_array_equal(pixels, expected)
