"""Images of every kind made ready to be packed; pixels are held to NumPy's, made by other means."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import zlib
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, features

from fastselfie.pipelines import shrinking
from fastselfie.pipelines.image_bytes import BadImage, fault
from fastselfie.pipelines.image_decoding import decode_by_pillow
from fastselfie.pipelines.jpeg_header import jpeg_header
from fastselfie.pipelines.shrinking import Shrinking, make_ready, shrink
from tests.photographs import jpeg, noise, picture, png
from tests.test_jpeg_window import cut

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's; the processes of the pool ignore them too
SETTINGS = Shrinking(size=64, side="shorter", quality=96)  # with whole chroma, so that colours can be compared


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data: bytes) -> NDArray[np.uint8]:
    """What Pillow decodes from a JPEG that anything may read."""
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert fault(data) is None
    assert not image.getexif()
    return np.asarray(image)


def assert_near(data: bytes, expected: NDArray[Any], levels: float = 3.0) -> None:
    """A JPEG shows ``expected``, (rows, columns, 3), to within ``levels`` of 255 on average."""
    shown = pixels(data)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(float) - expected).mean() < levels


@pytest.mark.parametrize(
    ("columns", "rows", "size", "side", "after"),
    [
        (500, 375, 256, "shorter", (341, 256)),  # 500 * 256 / 375 = 341.33
        (375, 500, 256, "shorter", (256, 341)),
        (500, 375, 256, "longer", (256, 192)),
        (256, 4000, 256, "shorter", (256, 4000)),
        (257, 4000, 256, "shorter", (256, 3984)),  # 3984.4
        (256, 100, 256, "longer", (256, 100)),
        (10, 20, 256, "shorter", (10, 20)),
        (4000, 1, 256, "longer", (256, 1)),
        (1, 1, 8, "longer", (1, 1)),
    ],
)
def test_sides(columns: int, rows: int, size: int, side: Literal["shorter", "longer"], after: tuple[int, int]) -> None:
    assert Shrinking(size=size, side=side, quality=95).sides(columns, rows) == after
    if columns * rows < 300_000:
        image = Image.open(io.BytesIO(shrink(png(picture(rows, columns)), Shrinking(size=size, side=side, quality=95))))
        assert image.size == after


@pytest.mark.parametrize("encode", [jpeg, png])
@pytest.mark.parametrize("factor", [2, 3, 8])
def test_a_shrunk_image_is_the_mean_of_its_pixels(encode: Any, factor: int) -> None:
    image = picture(64 * factor, 80 * factor)
    means = image.reshape(64, factor, 80, factor, 3).mean(axis=(1, 3))
    assert_near(shrink(encode(image), SETTINGS), means, levels=2)


@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"progressive": True}, {"orientation": 1}, {"quality": 30}])
def test_a_photograph_that_fits_keeps_its_bytes(options: dict[str, Any]) -> None:
    data = jpeg(picture(64, 90), **options)
    assert shrink(data, SETTINGS) is data


@pytest.mark.parametrize("marker", [b"\xff\xc4", b"\xff\xda"])
def test_a_header_with_gaps_is_not_copied(marker: bytes) -> None:
    """Pillow passes over bytes between segments; the decoders of training refuse such a file."""
    data = jpeg(picture(64, 90))
    gap = data.replace(marker, b"\0" + marker, 1)
    assert shrink(gap, SETTINGS) == shrink(data, dataclasses.replace(SETTINGS, recode="all"))
    filled = data.replace(marker, b"\xff\xff" + marker, 1)  # which the standard allows
    assert shrink(filled, SETTINGS) is filled


@pytest.mark.parametrize("options", [{"mode": "L"}, {"progressive": True}, {"mode": "CMYK"}])
def test_a_larger_one_becomes_rgb(options: dict[str, Any]) -> None:
    image = picture(128, 160)
    if options.get("mode") == "L":
        image = np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, axis=2)
    assert_near(shrink(jpeg(image, **options), SETTINGS), image.reshape(64, 2, 80, 2, 3).mean(axis=(1, 3)))


def shown(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """How a viewer shows what is stored (EXIF 2.3, tag 0x0112: where row 0 and column 0 lie)."""
    return {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored),
    }[orientation]  # fmt: skip


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("factor", [1, 3])
def test_orientation_of_a_jpeg_is_applied(orientation: int, factor: int) -> None:
    stored = picture(64 * factor, 100 * factor)
    small = stored.reshape(64, factor, 100, factor, 3).mean(axis=(1, 3)).astype(np.uint8)
    assert_near(shrink(jpeg(stored, orientation=orientation), SETTINGS), shown(small, orientation))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_of_other_formats_is_applied(format: str, orientation: int) -> None:
    stored, exif = picture(128, 200), Image.Exif()
    exif[0x0112] = orientation
    small = stored.reshape(64, 2, 100, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    data = saved(Image.fromarray(stored), format, exif=exif)
    assert_near(shrink(data, SETTINGS), shown(small, orientation), levels=6)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_alone_does_not_count(format: str) -> None:
    """As for DALI, libjpeg-turbo and browsers: what is packed is what was seen before."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    image = Image.fromarray(picture(60, 90))
    data = saved(image, format, **{"pnginfo": info} if format == "PNG" else {"xmp": XMP})
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (60, 90)
    if format == "JPEG":
        assert shrink(data, SETTINGS) == data
    else:
        assert_near(shrink(data, SETTINGS), picture(60, 90), levels=6)
    if format == "PNG":
        assert decode_by_pillow(np.frombuffer(data, dtype=np.uint8)).shape == (60, 90, 3)


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_does_not_exist_is_upright(value: int) -> None:
    image = picture(60, 90)
    assert_near(shrink(jpeg(image, orientation=value), SETTINGS), image)


def test_damaged_exif_is_dropped() -> None:
    image = picture(60, 90)
    data = jpeg(image, orientation=6)
    at = data.index(b"Exif\0\0") + 6
    broken = data[:at] + b"\xff" * 10 + data[at + 10 :]
    assert_near(shrink(broken, SETTINGS), image)


def test_16_bit_grey_is_scaled() -> None:
    levels = np.repeat(np.array([0, 100, 200, 255]) * 257 + np.array([0, 128, -128, 0]), 16)  # half a step off at most
    data = saved(Image.fromarray(np.tile(levels.astype(np.uint16), (48, 1))), "PNG")
    result = pixels(shrink(data, Shrinking(size=64, side="shorter", quality=100)))
    # Bands as wide as two blocks of a JPEG of quality 100 come back exactly.
    assert result[0, :, 0].tolist() == np.repeat([0, 100, 200, 255], 16).tolist()
    assert (result == result[:1, :, :1]).all()


def test_16_bit_colour() -> None:
    image = picture(40, 50)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image.astype(np.uint16) * 257)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert_near(shrink(data, SETTINGS), image)


def test_alpha_is_dropped_not_blended() -> None:
    image = picture(40, 50)
    alpha = np.zeros((40, 50, 1), np.uint8)
    assert_near(shrink(saved(Image.fromarray(np.concatenate([image, alpha], axis=2)), "PNG"), SETTINGS), image)
    grey = Image.fromarray(image).convert("L")
    grey.putalpha(0)
    assert_near(shrink(saved(grey, "PNG"), SETTINGS), np.asarray(grey.convert("RGB")))


def test_palettes_and_bits() -> None:
    image = Image.fromarray(picture(40, 50)).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert_near(shrink(saved(image, "PNG"), SETTINGS), expected)
    assert_near(shrink(saved(image, "PNG", transparency=bytes(16)), SETTINGS), expected)
    assert_near(shrink(saved(image, "GIF"), SETTINGS), expected)
    bits = np.zeros((40, 48), bool)
    bits[:, :16] = True
    assert_near(shrink(saved(Image.fromarray(bits), "PNG"), SETTINGS), np.repeat(bits[..., None] * 255.0, 3, axis=2))


@pytest.mark.parametrize("format", ["BMP", "TIFF", "WEBP", "GIF", "PNG", "AVIF"])
def test_other_formats(format: str) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    image = picture(64, 80)
    options = {"lossless": True} if format == "WEBP" else {}
    assert_near(shrink(saved(Image.fromarray(image), format, **options), SETTINGS), image, levels=6)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.fromarray(picture(40, 50, seed)) for seed in range(3)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert_near(shrink(data, SETTINGS), np.asarray(frames[0]), levels=6)


def test_what_a_camera_notes_is_not_kept() -> None:
    data = jpeg(picture(128, 128), comment=b"a note", icc_profile=b"a profile", orientation=3)
    assert not {"comment", "icc_profile", "exif"} & set(Image.open(io.BytesIO(shrink(data, SETTINGS))).info)


@pytest.mark.parametrize(("quality", "halved"), [(95, True), (96, False)])
def test_chroma(quality: int, halved: bool) -> None:
    result = shrink(png(picture(64, 64)), Shrinking(size=64, side="shorter", quality=quality))
    frame = result.index(b"\xff\xc0")
    assert result[frame + 11] == (0x22 if halved else 0x11)  # sampling of the first component, luma
    assert len(shrink(png(noise(64, 64)), Shrinking(size=64, side="shorter", quality=30))) < 5000


def with_thumbnail() -> bytes:
    """A JPEG cut off behind a whole one in its EXIF, whose end mark stands there."""
    whole = jpeg(noise(80, 80))
    segment = b"Exif\0\0" + jpeg(picture(16, 16))
    return (whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:])[:-3000]


HUGE = png(picture(8, 8)).replace(struct.pack(">II", 8, 8), struct.pack(">II", 20000, 20000))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "is no JPEG or PNG image"),
        (jpeg(noise(80, 80))[:-2000], "is cut off"),
        (png(noise(80, 80))[:-2000], "is cut off"),
        (jpeg(noise(80, 80))[:2], "is no JPEG or PNG image"),
        (with_thumbnail(), "cannot be decoded (image file is truncated"),
        (saved(Image.fromarray(noise(80, 80)), "BMP")[:-2000], "cannot be decoded (image file is truncated"),
        (saved(Image.fromarray(noise(80, 80)), "GIF")[:-2000], "cannot be decoded (image file is truncated"),
        (saved(Image.fromarray(noise(80, 80)), "WEBP")[:-2000], "cannot be decoded ("),
        (saved(Image.fromarray(noise(80, 80)), "TIFF", compression="tiff_lzw")[:-2000], "is no JPEG or PNG image"),
        (HUGE, "has 20000 x 20000 pixels, more than the 134217728 that are read"),
        (saved(Image.new("1", (14000, 10000)), "TIFF"), "has 10000 x 14000 pixels, more than the 134217728"),
        (saved(Image.new("F", (9, 9)), "TIFF"), "has pixels of kind F"),
        (saved(Image.new("I", (9, 9)), "TIFF"), "has pixels of kind I"),
        (saved(Image.new("L", (70000, 1)), "PNG"), "has 1 x 70000 pixels, and a JPEG at most 65500 a side"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no JPEG or PNG image"),
    ],
)  # fmt: skip
def test_what_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=re.escape(reason)) as caught:
        shrink(data, SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encode", [jpeg, png])
def test_any_damage_is_a_reason_or_an_image(encode: Any) -> None:
    whole, generator = encode(picture(70, 90)), np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(whole)
        for at in generator.integers(0, min(len(data), 700), 4):
            data[at] = generator.integers(0, 256)
        with suppress(BadImage):
            assert fault(shrink(bytes(data), SETTINGS)) is None


def test_all_may_be_encoded_anew() -> None:
    """Same size, fewer bytes, and close to what it was."""
    data = jpeg(picture(48, 60), quality=100)
    assert shrink(data, SETTINGS) is data
    anew = shrink(data, dataclasses.replace(SETTINGS, quality=90, recode="all"))
    assert len(anew) < len(data) / 2
    before, after = (np.asarray(Image.open(io.BytesIO(one))).astype(int) for one in (data, anew))
    assert before.shape == after.shape
    assert 0 < np.abs(before - after).mean() < 5


def can_be_cut(data: bytes) -> bool:
    header = jpeg_header(memoryview(data))
    assert header is not None
    return cut(np.frombuffer(data, np.uint8), header, (40, 40, 16, 16)) is not None


@pytest.mark.parametrize("quality", [95, 96])
def test_windows_can_be_cut_from_what_is_encoded(quality: int) -> None:
    settings = dataclasses.replace(SETTINGS, quality=quality)
    for columns in (97, 128, 200, 331):
        assert can_be_cut(shrink(png(picture(80, columns)), settings))


def test_what_fits_keeps_its_pixels_and_gets_markers() -> None:
    pytest.importorskip("numba", reason="fastselfie[markers] is not installed")
    settings = dataclasses.replace(SETTINGS, recode="markers")
    for options in ({}, {"optimize": True, "subsampling": 2}, {"mode": "L", "quality": 30}):
        data = jpeg(picture(64, 150) // 2 + noise(64, 150) // 2, **options)
        assert not can_be_cut(data)
        ready, copied = make_ready(data, settings)
        assert copied
        assert can_be_cut(ready)
        before, after = (np.asarray(Image.open(io.BytesIO(one))) for one in (data, ready))
        np.testing.assert_array_equal(before, after)
        assert make_ready(data, SETTINGS) == (data, True)
        assert make_ready(ready, settings) == (ready, True)


def test_markers_change_nothing_else() -> None:
    """What is progressive keeps its bytes, and what does not fit is encoded as always."""
    pytest.importorskip("numba", reason="fastselfie[markers] is not installed")
    settings = dataclasses.replace(SETTINGS, recode="markers")
    progressive = jpeg(picture(60, 90), progressive=True)
    assert make_ready(progressive, settings) == (progressive, True)
    encoded = shrink(png(picture(80, 200)), SETTINGS)
    assert make_ready(encoded, settings) == (encoded, True)
    for other in (jpeg(picture(100, 100)), png(picture(60, 90)), jpeg(picture(60, 90), orientation=6)):
        assert make_ready(other, settings) == (shrink(other, SETTINGS), False)


def test_no_markers_where_windows_cannot_be_cut_or_other_pixels_come_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="fastselfie[markers] is not installed")
    settings = dataclasses.replace(SETTINGS, recode="markers")
    wide = jpeg(np.zeros((64, 40_000, 3), np.uint8), mode="L", quality=1)  # by hand: 8 rows of 1,250 segments fit
    assert len(make_ready(wide, settings)[0]) > len(wide)
    wide = jpeg(np.zeros((64, 8 * 4099, 3), np.uint8), mode="L", quality=1)  # a prime: 8 * 4,099 are too many
    assert make_ready(wide, settings) == (wide, True)
    data, other = jpeg(picture(64, 150)), jpeg(picture(64, 150, 1), restart_marker_blocks=1)
    for wrong in (other, other[:-100] + b"\xff\xd9"):
        monkeypatch.setattr(shrinking, "with_restart_markers", lambda data, interval, wrong=wrong: wrong)
        assert make_ready(data, settings) == (data, True)
