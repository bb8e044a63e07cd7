"""The loader by itself: what it gives, how often, in which shares, and that it needs nobody's global state."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastselfie.pipelines
from fastselfie.errors import UserError
from fastselfie.kernels import patch_batch
from fastselfie.pipelines import Loader, loader
from fastselfie.pipelines.normalising import Normaliser
from tests.photographs import jpeg, picture, undecodable, write

CLASSES, EACH, TESTED = 4, 10, 7
IMAGES = CLASSES * EACH


@pytest.fixture(scope="module", params=["turbo", "dali"])
def decoder(request: pytest.FixtureRequest) -> str:
    pytest.importorskip({"turbo": "simplejpeg", "dali": "nvidia.dali"}[request.param])
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders. Every image is one plain colour of its own, so that any crop of it tells which image it is."""
    root = tmp_path_factory.mktemp("data")
    for label in range(CLASSES):
        for number in range(EACH):
            write(root, [(f"train/{label}/{number}.jpg", plain_colour(label * EACH + number))])
    write(root, [(f"val/{index % CLASSES}/{index}.jpg", plain_colour(index)) for index in range(TESTED)])
    return root


def plain_colour(index: int) -> bytes:
    return jpeg(np.full((40 + index, 60, 3), (6 * index, 250 - 6 * index, 128), dtype=np.uint8))


def which(images: torch.Tensor) -> list[int]:
    """The images of a uint8 batch, by their colour."""
    return [round(value / 6) for value in images[:, 0].float().mean(dim=(1, 2)).tolist()]


def opened(folder: Path, decoder: str, **options: object) -> Loader:
    settings = {"batch_size": 8, "size": 32, "dtype": torch.uint8, "threads": 1, "decoder": decoder}
    return loader(folder, **(settings | options))  # type: ignore[arg-type]


def test_batches_and_labels(folder: Path, decoder: str) -> None:
    batches = opened(folder, decoder)
    assert len(batches) == IMAGES // 8
    assert (batches.images, batches.classes) == (IMAGES, ("0", "1", "2", "3"))
    taken = list(batches)
    assert len(taken) == len(batches)
    seen = [image for images, _ in taken for image in which(images)]
    labels = [label for _, labels in taken for label in labels.tolist()]
    assert sorted(seen) == list(range(IMAGES))
    assert labels == [image // EACH for image in seen]
    assert seen != sorted(seen)
    images, of_them = taken[0]
    assert (images.shape, images.dtype, of_them.dtype) == ((8, 3, 32, 32), torch.uint8, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_iterations_go_through_the_stream_without_loss(folder: Path, decoder: str) -> None:
    """12 into 40 goes 3 times; the 4 that are left come with the next iteration: in 3 epochs, everything 3 times."""
    batches = opened(folder, decoder, batch_size=12)
    assert len(batches) == 3
    seen: list[int] = []
    for _ in range(10):
        seen += [image for images, _ in batches for image in which(images)]
    assert len(seen) == 360
    for epoch in range(9):
        assert sorted(seen[epoch * IMAGES : (epoch + 1) * IMAGES]) == list(range(IMAGES))
    again = [image for images, _ in opened(folder, decoder, batch_size=12).steps(7, 30) for image in which(images)]
    assert again == seen[7 * 12 :]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_processes_gives_the_same_stream(ranks: int, folder: Path, decoder: str) -> None:
    """Three epochs, bit by bit: the processes' shares one after the other are the batches of one process."""
    whole = list(opened(folder, decoder, batch_size=12).steps(0, 10))
    parts = [list(opened(folder, decoder, batch_size=12, rank=r, world_size=ranks).steps(0, 10)) for r in range(ranks)]
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)
    drawn = Counter(image for images, _ in whole for image in which(images))
    assert drawn == Counter(dict.fromkeys(range(IMAGES), 3))


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_test_split_comes_in_order_and_once(ranks: int, folder: Path, decoder: str) -> None:
    """Every process makes as many steps, with nothing in some where images run out."""
    parts = [opened(folder, decoder, split="test", batch_size=5, rank=r, world_size=ranks) for r in range(ranks)]
    assert {len(part) for part in parts} == {2}
    taken = [list(part) for part in parts]
    seen = [image for step in range(2) for part in taken for image in which(part[step][0])]
    assert sorted(seen) == list(range(TESTED))
    labels = [label for step in range(2) for part in taken for label in part[step][1].tolist()]
    assert labels == [image % CLASSES for image in seen] == sorted(labels)
    assert [which(images) for images, _ in parts[0]] == [which(images) for images, _ in taken[0]]  # and again


def test_pixels_are_normalised(folder: Path, decoder: str) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    raw = opened(folder, decoder, split="test")
    for dtype, near in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
        scaled = opened(folder, decoder, split="test", dtype=dtype, mean=mean, std=std)
        for (pixels, _), (images, _) in zip(raw, scaled, strict=True):
            assert images.dtype == dtype
            expected = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            torch.testing.assert_close(images.double(), expected.double(), rtol=near, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_and_loader_normalise_alike(dtype: torch.dtype) -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3 * 12).view(3, 32, 32, 3)
    normalise = Normaliser(size=32, mean=mean, std=std, dtype=dtype, threads=2)
    images = normalise(pixels)
    assert torch.equal(images, patch_batch(pixels, patch=32, mean=mean, std=std, dtype=dtype))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "images", "tasks"), [(32, 100, [42, 42, 16]), (224, 2, [1, 1]), (32, 0, [0])])
def test_small_images_are_normalised_some_at_a_time(
    size: int, images: int, tasks: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """42 of 32 pixels have as many numbers as fit into a task; one of 224 has more."""
    mean, std, at_a_time = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0]), list[int]()
    normalise = Normaliser(size=size, mean=mean, std=std, dtype=dtype, threads=1)
    task = normalise._normalise

    def noted(pixels: torch.Tensor, images: torch.Tensor) -> None:
        at_a_time.append(len(pixels))
        task(pixels, images)

    monkeypatch.setattr(normalise, "_normalise", noted)
    for seed in range(2):  # of the second a thread has its rows already
        shape, generator = (images, size, size, 3), torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        expected = patch_batch(pixels, patch=size, mean=mean, std=std, dtype=dtype)
        assert torch.equal(normalise(pixels), expected)
    assert at_a_time == 2 * tasks


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_batches_that_are_kept_stay_as_they_are(dtype: torch.dtype, folder: Path, decoder: str) -> None:
    """Memory of batches that were let go is used again, of others not: part of each is kept here, to the end."""
    batches = opened(folder, decoder, dtype=dtype)
    kept = [images[3:, :, 5] for images, _ in batches.steps(0, 12)]
    for step, part in enumerate(kept):
        (images, _), *_ = opened(folder, decoder, dtype=dtype).steps(step, step + 1)
        assert torch.equal(images[3:, :, 5], part)


def test_steps_without_end(folder: Path, decoder: str) -> None:
    (first, _), *_ = opened(folder, decoder).steps(0, 1)
    assert torch.equal(next(opened(folder, decoder).steps(0, 10**15))[0], first)


def test_two_at_once_and_global_state_untouched(folder: Path, decoder: str) -> None:
    expected = [which(images) for images, _ in opened(folder, decoder)]
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()  # type: ignore[index]
    one, other = iter(opened(folder, decoder)), iter(opened(folder, decoder))
    for ours in expected:
        assert which(next(one)[0]) == which(next(other)[0]) == ours
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), torch.get_num_threads()) == before[1:]  # type: ignore[index]
    assert [which(images) for images, _ in opened(folder, decoder, seed=1)] != expected


def test_bad_images_are_named_and_bounded(tmp_path: Path, decoder: str, caplog: pytest.LogCaptureFixture) -> None:
    files = write(tmp_path, [(f"{index}.jpg", jpeg(picture(40, 50, index))) for index in range(20)])
    files.path(7).write_bytes(undecodable(picture(40, 50)))
    batches = opened(tmp_path, decoder, batch_size=10, max_bad_share=0.05)
    with caplog.at_level(logging.WARNING, "fastselfie"):
        assert [len(images) for images, _ in batches] == [10, 10]
    assert list(batches.refused) == [files.name(7)]
    assert [record.getMessage() for record in caplog.records] == [f"{files.name(7)}: is damaged; it is not used"]
    with pytest.raises(UserError, match=r"max_bad_share 0\.04: 1 of 20 images cannot be used \(the first: .*7\.jpg is"):
        list(opened(tmp_path, decoder, batch_size=10, max_bad_share=0.04))


def test_images_in_memory() -> None:
    batches = loader("synthetic:60", batch_size=20, size=32, dtype=torch.uint8)
    assert len(batches) == 3
    assert sum(len(images) for images, _ in batches) == 60
    tested = list(loader("synthetic:60", split="test", batch_size=10, size=32))
    assert [len(images) for images, _ in tested] == [10, 5]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_images_in_memory_are_normalised_too(dtype: torch.dtype, near: float) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    raw = loader("synthetic:60", batch_size=20, size=32, dtype=torch.uint8)
    scaled = loader("synthetic:60", batch_size=20, size=32, dtype=dtype, mean=mean, std=std)
    for (pixels, _), (images, _) in zip(raw, scaled, strict=True):
        assert (pixels.dtype, images.dtype) == (torch.uint8, dtype)
        expected = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(images.double(), expected.double(), rtol=near, atol=near)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
        ({"batch_size": 41}, "batch_size 41: there are only 40 images"),
        ({"world_size": 3}, "batch_size 8: must be a multiple of world_size 3"),
        ({"rank": 1}, "rank 1: must be at least 0 and below world_size 1"),
        ({"split": "val"}, "split 'val': must be 'train' or 'test'"),
        ({"view": "both"}, "view 'both': must be 'train' or 'plain'"),
        ({"dtype": torch.float64}, "dtype torch.float64: must be torch.float32, torch.bfloat16 or torch.uint8"),
        ({"decoder": "pil"}, "decoder 'pil': must be"),
        ({"threads": 0}, "threads 0: must be at least 1"),
        ({"dtype": "float32"}, "dtype 'float32': must be torch.float32"),
        ({"size": 0}, "size 0: must be at least 1"),
        ({"mean": (123.7, 116.3, 103.5)}, "mean (123.7, 116.3, 103.5): must be three numbers in [0, 1]"),
        ({"std": (0.5, 0.5)}, "std (0.5, 0.5): must be three numbers above 0"),
        ({"std": (0.5, 0.5, 0)}, "std (0.5, 0.5, 0): must be three numbers above 0"),
        ({"min_area": 0}, "min_area 0: must be above 0 and at most 1"),
        ({"max_bad_share": -1}, "max_bad_share -1: must be at least 0 and at most 1"),
    ],
)
def test_mistakes(options: dict[str, object], said: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(folder, **({"decoder": "auto"} | options))  # type: ignore[arg-type]
    assert str(caught.value).startswith(said)


def test_a_step_before_the_first(folder: Path, decoder: str) -> None:
    with pytest.raises(UserError, match="start -1: must be at least 0"):
        next(opened(folder, decoder).steps(-1, 1))


def test_without_a_test_split(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"has no val/ or test/; take split='train'"):
        opened(tmp_path, "auto", split="test")


def test_public_names() -> None:
    assert fastselfie.pipelines.loader is loader
    with pytest.raises(AttributeError, match="has no attribute 'loaders'"):
        _ = fastselfie.pipelines.loaders


def test_odd_images(tmp_path: Path, decoder: str) -> None:
    """One pixel, 60 million pixels, a line, an animation: each is of one colour, which it still has in both views."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)]
    pixel, huge, line, frame = (Image.new("RGB", (1, 1), colour) for colour in colours)
    pixel.save(tmp_path / "0.jpg", quality=100, subsampling=0)
    huge.resize((10_000, 6_000)).save(tmp_path / "1.jpg")
    line.resize((3_000, 1)).save(tmp_path / "2.jpg", quality=100, subsampling=0)
    frame = frame.resize((40, 40))
    frame.save(tmp_path / "3.png", save_all=True, append_images=[frame.rotate(90), Image.new("RGB", (40, 40))])
    for view in ("train", "plain"):
        batches = opened(tmp_path, decoder, batch_size=4, view=view)
        ((images, _),) = batches.steps(0, 1)
        seen = images.float().mean(dim=(2, 3)).tolist()
        for colour in colours:
            assert min(max(abs(a - b) for a, b in zip(colour, mean, strict=True)) for mean in seen) < 6, (view, colour)
        assert not batches.refused
