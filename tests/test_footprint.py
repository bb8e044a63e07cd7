"""The loader's memory: told beforehand, and not growing over thousands of batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastselfie.pipelines.decoders import DecoderName
from fastselfie.pipelines.footprint import Footprint, footprint
from fastselfie.pipelines.gpu_decoding import GpuDecoding
from fastselfie.pipelines.loading import Loading
from fastselfie.pipelines.view import View
from tests.photographs import CPU, jpeg, noise, write

ROOT = Path(__file__).parents[1]
# Prints resident bytes: before the loader is made, after 500 batches, at the end.
_LOADING = """
import sys
from pathlib import Path
import nvidia.dali.fn, simplejpeg
from fastselfie.pipelines.image_folder import read_image_folder
from fastselfie.pipelines.view import View
from tests.photographs import pipeline

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

folder, decoder, batch, batches, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
files = read_image_folder(Path(folder)).train
print(resident())
source = pipeline(files, View(size=size, crop="resized", flip=True), batch=batch, prefetch=2, decoder=decoder)
requests = [(start, start + batch) for start in range(0, batch * batches, batch)]
source.announce(requests)
for number, request in enumerate(requests):
    source.batch(*request)
    if number + 1 == min(500, batches // 2):
        print(resident())
print(resident())
"""


@pytest.fixture(scope="module", params=["turbo", "dali"])
def decoder(request: pytest.FixtureRequest) -> DecoderName:
    pytest.importorskip("simplejpeg")
    pytest.importorskip("nvidia.dali")
    name: DecoderName = request.param
    return name


def resident(folder: Path, decoder: str, batch: int, batches: int, size: int) -> list[int]:
    """In a process of its own, at three moments."""
    words = [sys.executable, "-c", _LOADING, str(folder), decoder, str(batch), str(batches), str(size)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=150, check=True)
    return [int(line) for line in ended.stdout.split()]


def test_thousands_of_batches(decoder: DecoderName, tmp_path: Path) -> None:
    """Images of many sizes, so that places for them would grow if they could."""
    write(tmp_path, [(f"{i:03}.jpg", jpeg(noise(16 + i % 40, 60 - i % 31, i))) for i in range(100)])
    before, early, late = resident(tmp_path, decoder, 1, 2_000, 8)
    assert before < early
    assert late < 1.1 * early
    assert late - early < 1_500 * 890  # a kilobyte for each of 1,500 batches would be more


def test_what_is_told_is_kept(decoder: DecoderName, tmp_path: Path) -> None:
    """The process with its loader stays below what it was plus what was told, by a tenth at most above."""
    files = write(tmp_path, [(f"{i:03}.jpg", jpeg(noise(200 + i, 260 - i, i))) for i in range(64)])
    loading = Loading(threads=1, prefetch=2, batch=64, decoder=decoder)
    told = footprint(files, View(size=224, crop="resized", flip=True), loading, CPU)
    before, _, late = resident(tmp_path, decoder, 64, 24, 224)
    assert late < 1.1 * (before + told.host)
    assert told.host < 250 << 20  # and it is no idle promise


def test_it_is_the_sum_of_what_is_held(tmp_path: Path) -> None:
    """By hand: 10 images of 8x12 pixels and about 1 kB, a thousand of which are read and as many decoded ahead."""
    files = write(tmp_path, [(f"{i}.jpg", jpeg(noise(8, 12, i))) for i in range(10)])
    size = sum(path.stat().st_size for path in tmp_path.iterdir()) / 10
    loading = Loading(threads=3, prefetch=5, batch=200, decoder="turbo")
    told = footprint(files, View(size=16), loading, CPU)
    expected = 1000 * 2 * size + (1000 + 400) * 16 * 16 * 3 + 3 * 2 * 8 * 12 * 3 + (25 << 20)
    assert told == Footprint(host=round(expected), device=0)
    on_device = footprint(files, View(size=16), loading, torch.device("cuda"))
    assert on_device.device == 400 * 16 * 16 * 3


def test_on_a_gpu(tmp_path: Path) -> None:
    """By hand, where DALI decodes there: windows of half the area on average, and with them or not the whole images."""
    files = write(tmp_path, [(f"{i}.jpg", jpeg(noise(8, 12, i))) for i in range(10)])
    size = sum(path.stat().st_size for path in tmp_path.iterdir()) / 10
    view, cuda, found = View(size=16, crop="resized", min_area=0.0), torch.device("cuda"), []
    for regions in (True, False):
        loading = Loading(threads=3, prefetch=5, batch=200, decoder="dali", gpu=GpuDecoding(regions=regions))
        told = footprint(files, view, loading, cuda)
        decoded = 3 * 8 * 12 * (0.5 if regions else 1.5)
        held = 1.15 * 1000 * (decoded + 2 * 3 * 16 * 16) + 400 * 3 * 16 * 16 + 3 * (16 << 20)
        assert told == Footprint(host=round(3000 * size + (30 << 20) + 3 * (16 << 20)), device=round(held))
        found.append(footprint(files, view.plain(), loading, cuda))
    assert found[0] == found[1], "a plain view has no regions"


def test_unreadable_images_do_not_count(tmp_path: Path) -> None:
    files = write(tmp_path, [(f"{i}.jpg", jpeg(noise(8, 12, 1))) for i in range(4)])
    loading = Loading(threads=1, prefetch=1, batch=2, decoder="turbo")
    before = footprint(files, View(size=16), loading, CPU)
    files.path(1).write_bytes(b"text")
    files.path(2).unlink()
    assert footprint(files, View(size=16), loading, CPU) == before


@pytest.mark.parametrize(
    ("host", "device", "said"),
    [(0, 0, "1 MiB of memory"), (300 << 20, 0, "300 MiB of memory"),
     (3 << 30, 1 << 29, "3.0 GiB of memory, 512 MiB of the device's")],
)  # fmt: skip
def test_what_is_said(host: int, device: int, said: str) -> None:
    assert Footprint(host=host, device=device).told() == said
