"""The decoder of libjpeg-turbo, Pillow and PyTorch: against DALI's and against Pillow."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.plain_photos import DRAWS, central_window, decode, plain_view, random_window, training_view
from fastselfie.pipelines.jpeg_header import jpeg_header
from fastselfie.pipelines.view import View
from fastselfie.pipelines.window_numpy import random_windows
from tests.photographs import images_of, jpeg, noise, picture, png
from tests.test_photo_pixels import FORMATS, ORIENTATIONS, PICTURE, compare
from tests.turbo_runs import GOOD, MIN_AREA, dali, dali_windows, encoded, resized, turbo, views

simplejpeg = pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")

ALL = [make() for make in FORMATS.values()] + [
    jpeg(PICTURE, orientation=value, subsampling=subsampling)
    for value in ORIENTATIONS.values()
    for subsampling in (0, 2)
]


def apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.abs(a.astype(np.int16) - b)


def test_windows_are_those_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    shapes = generator.integers(1, 600, (3000, 2))
    shapes[:600, 1] = generator.integers(1, 12, 600)
    shapes[600:700] = 1  # where a side may round to 0
    draws = generator.random((3000, DRAWS))
    expected = [
        random_window(shape[0], shape[1], draw, MIN_AREA)
        for shape, draw in zip(shapes.tolist(), draws.tolist(), strict=True)
    ]
    assert [tuple(window) for window in random_windows(shapes, draws, MIN_AREA).tolist()] == expected
    windows_B4 = dali_windows(list(np.insert(shapes, 2, 3, axis=1).astype(np.float64)), draws, MIN_AREA)
    assert [tuple(window) for window in windows_B4.tolist()] == expected
    assert (
        sum(w == central_window(shape[0], shape[1]) for w, shape in zip(expected, shapes.tolist(), strict=True)) > 200
    )


@pytest.mark.parametrize("size", [224, 32])
def test_every_format_as_dali_decodes_it(size: int) -> None:
    view = resized(size)
    ours, theirs = turbo(view), dali(view)
    for seed in range(3):
        run = encoded(ALL, view, seed)
        for one, other in zip(views(ours, run), views(theirs, run), strict=True):
            compare(one, other, edge=True)
    ours, theirs = turbo(view.plain()), dali(view.plain())
    run = encoded(ALL, view.plain())
    for one, other in zip(views(ours, run), views(theirs, run), strict=True):
        compare(one, other, edge=False)


def test_photographs_as_dali_decodes_them() -> None:
    if "FASTSELFIE_DATA" not in os.environ:
        pytest.skip("FASTSELFIE_DATA names no folder with imagenet_sample/")
    paths = sorted((Path(os.environ["FASTSELFIE_DATA"]) / "imagenet_sample" / "train").rglob("*.JPEG"))
    files = [path.read_bytes() for path in paths[:: len(paths) // 40]]
    assert len(files) >= 40
    for view in (resized(224), View(size=224)):
        run = encoded(files, view)
        for one, other in zip(views(turbo(view), run), views(dali(view), run), strict=True):
            compare(one, other, edge=view.crop == "resized")


def test_every_pixel_is_within_a_level_of_pillow() -> None:
    """Also the outermost: where the filter reaches beyond the window, both leave out what is not there."""
    for size in (224, 32):
        run = encoded(ALL, resized(size))
        assert run.draws is not None
        assert run.flip is not None
        pixels = views(turbo(resized(size)), run)
        plain = views(turbo(View(size=size)), encoded(ALL, View(size=size)))
        for at, data in enumerate(ALL):
            expected = training_view(data, size, run.draws[at].tolist(), MIN_AREA, bool(run.flip[at]))
            assert expected.std() > 5
            assert apart(pixels[at], expected).max() <= 1
            assert apart(plain[at], plain_view(data, size)).max() <= 1


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_a_part_of_a_file_is_that_part_of_the_whole(subsampling: str) -> None:
    """A decoder that stops below the window gives what the whole image, as a PNG file, gives: exactly."""
    image = noise(90, 70) // 2 + picture(90, 70) // 2
    grey = subsampling == "Gray"
    stored = image[:, :, :1].copy() if grey else image
    data = simplejpeg.encode_jpeg(stored, 90, "GRAY" if grey else "RGB", subsampling, False)
    whole, view = png(decode(data)), resized(48)
    of_part, of_whole = (encoded([file] * 400, view) for file in (data, whole))
    np.testing.assert_array_equal(views(turbo(view, batch=400), of_part), views(turbo(view, batch=400), of_whole))
    assert of_part.draws is not None
    windows_B4 = random_windows(np.full((400, 2), image.shape[:2]), of_part.draws, MIN_AREA)
    assert len({row + height for row, _, height, _ in windows_B4.tolist()}) > 50  # windows end at most rows


@pytest.mark.parametrize("options", [{"restart_marker_blocks": 3}, {"progressive": True}, {"optimize": True}])
def test_a_part_of_other_files(options: dict[str, int]) -> None:
    data, view = jpeg(picture(120, 90), subsampling=2, **options), resized(40)
    whole = png(decode(data))
    ours, expected = (views(turbo(view), encoded([file] * 100, view)) for file in (data, whole))
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (3, 200), (200, 4), (32, 32), (1200, 30), (37, 500), (20, 9000)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    data = png(noise(*shape))
    for size in (32, 224):
        run = encoded([data] * 8, resized(size))
        assert run.draws is not None
        assert run.flip is not None
        pixels = views(turbo(resized(size)), run)
        for at in range(8):
            expected = training_view(data, size, run.draws[at].tolist(), MIN_AREA, bool(run.flip[at]))
            assert apart(pixels[at], expected).max() <= 1
        plain = views(turbo(View(size=size)), encoded([data], View(size=size)))
        assert apart(plain[0], plain_view(data, size)).max() <= 1


def test_a_batch_is_laid_out_in_patches() -> None:
    files = [png(picture(56, 56, seed)) for seed in range(3)]
    flat = views(turbo(View(size=28)), encoded(files, View(size=28)))
    decoder = turbo(View(size=28, grid=7))
    decoder.schedule(encoded(files, View(size=28, grid=7)))
    pixels = decoder.take()
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 7, 4, 7, 4, 3))
    assert pixels.is_contiguous()
    np.testing.assert_array_equal(pixels[1, 2, :, 5].numpy(), flat[1, 8:12, 20:24])


def test_runs_come_in_order_and_stay_what_they_were() -> None:
    view, groups = resized(64), [[jpeg(picture(100, 90 + 7 * run + at)) for at in range(40)] for run in range(4)]
    decoder = turbo(view, depth=4)
    for run, files in enumerate(groups):
        decoder.schedule(encoded(files, view, seed=run))
    taken = [decoder.take() for _ in groups]
    kept = [pixels.clone() for pixels in taken]
    for run, files in enumerate(groups):
        again = views(decoder, encoded(files, view, seed=run))
        np.testing.assert_array_equal(images_of(taken[run]), again)
    assert all(torch.equal(pixels, copy) for pixels, copy in zip(taken, kept, strict=True))


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_in_a_header(order: str) -> None:
    for kind, value, expected in ((3, 6, 6), (3, 9, 1), (3, 0, 1), (2, 6, 1)):
        entries = struct.pack(order + "HHII", 0x010F, 4, 1, 7) + struct.pack(order + "HHIHH", 0x0112, kind, 1, value, 0)
        tiff = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, 2) + entries
        segment = b"Exif\0\0" + tiff
        data = GOOD[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + GOOD[2:]
        header = jpeg_header(memoryview(data))
        assert header is not None
        assert (header.rows, header.columns, header.orientation, header.usual) == (60, 50, expected, True)
        for broken in range(len(segment)):  # a directory that points beyond the segment's end
            cut = GOOD[:2] + b"\xff\xe1" + struct.pack(">H", broken + 2) + segment[:broken] + GOOD[2:]
            header = jpeg_header(memoryview(cut))
            assert header is not None
            assert header.orientation in (1, expected)


def test_unusual_files_are_told_by_their_header() -> None:
    """Arithmetic coding, 12 bits, a sampling without a name and four channels go to Pillow."""
    at = GOOD.index(b"\xff\xc0")
    assert GOOD[at + 9 : at + 13] == b"\x03\x01\x11\x00"
    for place, value in ((1, 0xC9), (4, 12), (11, 0x31), (14, 0x21)):
        changed = bytearray(GOOD)
        changed[at + place] = value
        header = jpeg_header(memoryview(changed))
        assert header is not None
        assert not header.usual
    header = jpeg_header(memoryview(FORMATS["cmyk jpeg"]()))
    assert header is not None
    assert not header.usual


def test_only_its_own_threads_work() -> None:
    """However many PyTorch may use: counted by the system, in a process of its own."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("PyTorch takes no second thread where there is one core")
    program = """
import os
import torch
from tests.test_turbo_decoder import PICTURE, View, encoded, jpeg, resized, turbo
assert torch.get_num_threads() > 1
decoders = []
for view in (resized(224), View(size=224)):
    before = len(os.listdir("/proc/self/task"))
    decoder = turbo(view, threads=2, depth=3)
    decoders.append(decoder)  # and its threads live
    for _ in range(3):
        decoder.schedule(encoded([jpeg(PICTURE)] * 64, view))
    for _ in range(3):
        decoder.take()
    print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert [int(line) for line in ended.stdout.splitlines()] == [2, 2]
