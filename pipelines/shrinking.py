"""One image made ready to be packed: decoded whole as a check, shrunk where it is large, a JPEG in RGB or grey then.

A photograph that need not change keeps its bytes, or its pixels with restart markers between them, if nothing else is
asked for: a second JPEG compression loses a little, but at quality 90 those of up to 500 pixels then take 57 kB instead
of 101 (`bench/results/packings_cpu.json`). What is encoded here has markers: see `fastselfie.pipelines.jpeg_segments`.
The other choices were measured on every sixth of 600 ImageNet photographs, shrunk to 256, by the PSNR of a 160-pixel
view of the packed image against one of the original:

- LANCZOS keeps more than BICUBIC, 46.4 dB against 45.8, for a millisecond of the eight that an image takes.
- At quality 95 whole chroma gives 46.4 dB and Pillow's halved chroma 42.1 dB, for 57 kB against 44 kB, and it takes
  some 40% longer to decode. So chroma is halved, as cameras do, up to 95: who asks for more asks for fidelity.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from fastselfie.pipelines.image_bytes import BadImage, check_bytes, fault, size_fault
from fastselfie.pipelines.image_decoding import exif_orientation, turned
from fastselfie.pipelines.jpeg_header import is_in_order, jpeg_header
from fastselfie.pipelines.jpeg_segments import find_segments, restart_interval, with_table
from fastselfie.pipelines.restart_markers import with_restart_markers

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
"""What is opened, by Pillow's names. Others of its formats start programs (EPS) or hold no photographs."""
_JPEG = ("JPEG", "MPO")  # MPO: cameras append smaller pictures or depth
_FILTER = Image.Resampling.LANCZOS
_REDUCING_GAP = 3.0  # cheap reduction down to three times the size, LANCZOS from there: Pillow calls it near to fair
_WHOLE_CHROMA, _HALVED_CHROMA = 0, 2  # Pillow's 4:4:4 and 4:2:0
_WHOLE_CHROMA_ABOVE = 95
_COPIED_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # Huffman-coded, baseline to progressive: what every decoder reads
_LONGEST_JPEG = 65500  # libjpeg's limit
_DEEP_GREY = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
_PLAIN = frozenset(("L", "RGB"))
_CONVERTIBLE = frozenset(("1", "P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"))


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """How images are made ready.

    Attributes:
        size: pixels that the ``side`` has at most afterwards; nothing is ever enlarged. quality: of JPEG, 1 to 100.
        recode: ``needed``: what fits keeps its bytes. ``markers``: it keeps its pixels, and windows of it decode in
            less time. ``all``: it is encoded anew, to be decoded in less time still.
    """

    size: int
    side: Literal["shorter", "longer"]
    quality: int
    recode: Literal["needed", "markers", "all"] = "needed"

    def sides(self, columns: int, rows: int) -> tuple[int, int]:
        """Columns and rows of an image of that size afterwards."""
        measured = min(columns, rows) if self.side == "shorter" else max(columns, rows)
        if measured <= self.size:
            return columns, rows
        return max(round(columns * self.size / measured), 1), max(round(rows * self.size / measured), 1)


def make_ready(data: bytes, shrinking: Shrinking) -> tuple[bytes, bool]:
    """The JPEG to pack for ``data``, an encoded image, and whether its pixels are copied.

    Raises: as `shrink`.
    """
    jpeg = shrink(data, shrinking)
    copied = jpeg is data
    return (with_segments(data) if copied and shrinking.recode == "markers" else jpeg), copied


def with_segments(data: bytes) -> bytes:
    """A JPEG with the same coefficients from which windows can be cut; ``data`` itself where it is one, is coded in
    several passes, has too many segments for their table, or not all of it is in order."""
    header = jpeg_header(memoryview(data))
    if header is None or not header.usual or find_segments(np.frombuffer(data, np.uint8), header) is not None:
        return data
    marked = with_restart_markers(data, restart_interval(header.columns, header.mcu[1]))
    if marked is None:
        return data
    cuttable = with_table(marked)
    return data if cuttable is marked or not _same_pixels(cuttable, data) else cuttable


def _same_pixels(one: bytes, other: bytes) -> bool:
    """Of two JPEGs; not where one cannot be decoded."""
    try:
        first, second = (np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",))) for data in (one, other))
        return np.array_equal(first, second)
    except MemoryError:
        raise
    except Exception:  # Pillow raises nearly anything
        return False


def shrink(data: bytes, shrinking: Shrinking) -> bytes:
    """A JPEG of ``data``, an encoded image; ``data`` itself if that is an upright JPEG that fits and may be kept.

    EXIF orientation is applied, alpha dropped, 16-bit grey scaled to 8; of an animation the first frame is taken.

    Raises:
        BadImage: it cannot be decoded whole, or has more than `fastselfie.pipelines.image_bytes.MOST_PIXELS`.
        MemoryError: that is not the image's fault.
    """
    if not data:
        raise BadImage("is empty")
    check_bytes(len(data))
    try:
        return _shrink(data, shrinking)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # damaged bytes make Pillow's readers raise nearly anything
        raise BadImage(f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})") from None


def _shrink(data: bytes, shrinking: Shrinking) -> bytes:
    picture = _opened(data)
    columns, rows = picture.size
    sides = shrinking.sides(columns, rows)
    if sides != picture.size:
        # JPEG: the inverse transform gives a half, a quarter or an eighth at once; all bytes are decoded still.
        picture.draft(None, (round(sides[0] * _REDUCING_GAP), round(sides[1] * _REDUCING_GAP)))
    picture.load()
    orientation = exif_orientation(picture)
    kept = shrinking.recode != "all" and sides == (columns, rows)
    if kept and orientation == 1 and _is_plain_jpeg(picture, data):  # one with damaged EXIF is to lose that
        return data
    plain = _plain(picture)
    if sides != (columns, rows):
        plain = plain.resize(sides, _FILTER, reducing_gap=_REDUCING_GAP)
    if orientation > 1:
        plain = Image.fromarray(turned(np.asarray(plain), orientation))
    return _jpeg(plain.convert("RGB"), shrinking.quality)


def _opened(data: bytes) -> Image.Image:
    """Its header read, its first bytes and ends looked at."""
    wrong = fault(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage(wrong or "is damaged (its header)") from None
    # Training looks for the same faults of a JPEG: what is copied must pass there. Other formats have no such look.
    if wrong and picture.format in (*_JPEG, "PNG"):
        raise BadImage(wrong)
    wrong = size_fault(picture.height, picture.width)
    if wrong:
        raise BadImage(wrong)
    return picture


def _is_plain_jpeg(picture: Image.Image, data: bytes) -> bool:
    """One that every decoder reads."""
    header = jpeg_header(memoryview(data)) if picture.format in _JPEG else None
    if header is None or header.marker not in _COPIED_FRAMES or picture.mode not in _PLAIN:
        return False
    return is_in_order(data, header)


def _plain(picture: Image.Image) -> Image.Image:
    """As 8-bit grey or RGB."""
    if picture.mode in _PLAIN:
        return picture
    # Older Pillow opens a PNG of 16-bit grey as 32-bit integers.
    if picture.mode in _DEEP_GREY or (picture.mode == "I" and picture.format == "PNG"):
        grey = np.asarray(picture, dtype=np.float32) / 257  # 65535 becomes 255
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if picture.mode in _CONVERTIBLE:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
        return (picture.convert(premultiplied) if premultiplied else picture).convert("RGB")
    raise BadImage(f"has pixels of kind {picture.mode}, of which it is not known what white is")


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    if max(picture.size) > _LONGEST_JPEG:
        columns, rows = picture.size
        raise BadImage(f"has {rows} x {columns} pixels, and a JPEG at most {_LONGEST_JPEG} a side")
    file = io.BytesIO()
    picture.info.clear()  # Pillow would write a comment from there
    chroma = _WHOLE_CHROMA if quality > _WHOLE_CHROMA_ABOVE else _HALVED_CHROMA
    mcu_columns = 8 if chroma == _WHOLE_CHROMA else 16
    interval = restart_interval(picture.width, mcu_columns)
    picture.save(file, "JPEG", quality=quality, subsampling=chroma, restart_marker_blocks=interval)
    return with_table(file.getvalue())
