"""The device-resident pipeline and the Selfie task on it, against crops, mirrors and counts made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.config import PretrainConfig
from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.source import ResidentSplit
from fastselfie.pipelines.view import Batch, View
from fastselfie.pretext.selfie import SelfieTask, context_gap
from fastselfie.pretext.task import PixelFormat
from fastselfie.randomness import Purpose, integers, permutations
from fastselfie.recipes import recipe

CPU, SIDE, IMAGES, SEED = torch.device("cpu"), 12, 23, 9
RAW: dict[str, Any] = {"mean": torch.zeros(3), "std": torch.full((3,), 1 / 255), "dtype": torch.float32}  # 0 to 255


@pytest.fixture(scope="module")
def split() -> ResidentSplit:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    return ResidentSplit(images_SHW3=images, labels_S=np.arange(IMAGES, dtype=np.int64) * 7 % 5)


def make(split: ResidentSplit, rows: list[int] | None = None, **view: Any) -> ResidentPipeline:
    options: dict[str, Any] = {"pad": 2, "flip": True} | view
    chosen = None if rows is None else torch.tensor(rows)
    return ResidentPipeline(split, view=View(size=SIDE, **options), seed=SEED, device=CPU, rows=chosen)


def images_of(batch: Batch) -> NDArray[np.uint8]:
    """(B, H, H, 3): each image as one patch, unnormalised."""
    return batch.patches(patch=SIDE, **RAW).permute(0, 2, 3, 1).round().byte().numpy()


def by_key(batch: Batch) -> dict[tuple[int, int], NDArray[np.uint8]]:
    return dict(zip(zip(batch.epoch_B.tolist(), batch.sample_B.tolist(), strict=True), images_of(batch), strict=True))


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_a_batch_is_cropped_and_mirrored_as_its_keys_say(split: ResidentSplit, pad_mode: str) -> None:
    batch = make(split, pad_mode=pad_mode).batch(10, 10 + 2 * IMAGES)  # three epochs
    assert set(batch.epoch_B.tolist()) == {0, 1, 2}
    corners = integers(SEED, Purpose.CROP, batch.epoch_B, batch.sample_B, 2, 5).tolist()
    flips = integers(SEED, Purpose.FLIP, batch.epoch_B, batch.sample_B, 1, 2)[:, 0].tolist()
    assert {corner for pair in corners for corner in pair} == set(range(5))
    for image, sample, (y, x), flip in zip(images_of(batch), batch.sample_B.tolist(), corners, flips, strict=True):
        margin = ((2, 2), (2, 2), (0, 0))
        original = split.images_SHW3[sample]
        padded = np.pad(original, margin) if pad_mode == "zero" else np.pad(original, margin, mode="reflect")
        crop = padded[y : y + SIDE, x : x + SIDE]
        np.testing.assert_array_equal(image, crop[:, ::-1] if flip else crop)
    np.testing.assert_array_equal(batch.labels_B.numpy(), split.labels_S[batch.sample_B.numpy()])


def test_crops_and_mirrors_can_be_switched_off(split: ResidentSplit) -> None:
    batch = make(split, pad=0, flip=False).batch(0, IMAGES)
    np.testing.assert_array_equal(images_of(batch), split.images_SHW3[batch.sample_B.numpy()])
    assert sorted(batch.sample_B.tolist()) == list(range(IMAGES))


def test_a_subset_sees_the_crops_of_the_whole(split: ResidentSplit) -> None:
    rows = [20, 3, 4, 11, 17]
    part = by_key(make(split, rows).batch(0, 4 * len(rows)))
    whole = by_key(make(split).batch(0, 4 * IMAGES))
    assert set(part) == {(epoch, row) for epoch in range(4) for row in rows}
    for key, image in part.items():
        np.testing.assert_array_equal(image, whole[key])
    np.testing.assert_array_equal(make(split, rows).batch(0, 5).labels_B.sort().values, np.sort(split.labels_S[rows]))


def test_batches_do_not_depend_on_how_they_are_cut(split: ResidentSplit) -> None:
    whole = images_of(make(split).batch(0, 60))
    parts = [images_of(make(split).batch(start, start + 12)) for start in range(0, 60, 12)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_in_order_gives_the_images_as_they_are(split: ResidentSplit) -> None:
    rows = [20, 3, 4, 11, 17]
    for pipeline, expected in ((make(split), list(range(4, 9))), (make(split, [0, 1, 2, 22, *rows]), rows)):
        batch = next(pipeline.in_order([(4, 9)]))
        np.testing.assert_array_equal(images_of(batch), split.images_SHW3[expected])
        assert batch.sample_B.tolist() == expected
        assert batch.epoch_B.tolist() == [0] * 5
        assert batch.labels_B.tolist() == split.labels_S[expected].tolist()


# The Selfie task: 3 x 3 patches of 4 pixels, of which floor(0.5 * 9 + 0.5) = 5 are seen and 4 asked about.
CONFIG = PretrainConfig(
    recipe="test", image_size=SIDE, patch=4, width=1 / 16, heads=4, keep=0.5, pad=2, seed=SEED, pooler="none"
)
MASKED = 4


def make_task(network: Any) -> SelfieTask:
    return SelfieTask(CONFIG, cast(Selfie, network), PixelFormat(**RAW))


def question(batch: Batch) -> tuple[Tensor, Tensor, float]:
    """The patches and places that the network is shown, and the accuracy reported when it gets 3 right."""
    shown: list[Tensor] = []

    def forward(patches: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        shown.extend((patches, places_BN))
        return torch.tensor(1.5), torch.tensor(3)

    loss = make_task(None).loss(forward, batch)
    assert float(loss.value) == 1.5
    return shown[0], shown[1], float(loss.metrics["accuracy"])


def test_masks_belong_to_samples_and_patches_to_places(split: ResidentSplit) -> None:
    pipeline = make(split)
    batch = pipeline.batch(15, 31)
    patches, places, accuracy = question(batch)
    assert torch.equal(places, permutations(SEED, Purpose.MASK, batch.epoch_B, batch.sample_B, 9))
    assert accuracy == pytest.approx(3 / (16 * MASKED))
    for start, stop in ((15, 16), (20, 31)):
        assert torch.equal(question(pipeline.batch(start, stop))[1], places[start - 15 : stop - 15])
    for b, image in enumerate(images_of(batch)):
        for j, place in enumerate(places[b].tolist()):
            y, x = 4 * (place // 3), 4 * (place % 3)
            shown = patches[9 * b + j].permute(1, 2, 0).round().byte().numpy()
            np.testing.assert_array_equal(shown, image[y : y + 4, x : x + 4])


def test_masks_change_with_the_epoch(split: ResidentSplit) -> None:
    batch = make(split).batch(0, 2 * IMAGES)
    keys = zip(batch.epoch_B.tolist(), batch.sample_B.tolist(), strict=True)
    places = dict(zip(keys, question(batch)[1], strict=True))
    same = sum(torch.equal(places[0, sample], places[1, sample]) for sample in range(IMAGES))
    assert same <= 1  # of 9! orders


class Detective:
    """Stands in for a network: an image's u and h are its number, and two questions are right where they agree."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def encode(self, patches: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        number_B = torch.arange(len(places_BN))
        return number_B[:, None], number_B[:, None, None].expand(-1, MASKED, 1)

    def right_answers(self, u_BD: Tensor, h_BmD: Tensor, places_BN: Tensor) -> Tensor:
        self.asked.append(u_BD[:, 0].tolist())
        return 2 * (u_BD[:, 0] == h_BmD[:, 0, 0])


def test_the_control_takes_u_from_another_image(split: ResidentSplit) -> None:
    network = Detective()
    counts = make_task(network).context_counts(next(make(split).in_order([(0, 6)])))
    assert counts.dtype == torch.int64
    assert counts.tolist() == [12, 0, 6 * MASKED, 6, 6 * 2**2]
    assert network.asked[0] == list(range(6))
    assert sorted(network.asked[1]) == list(range(6))  # each u is used once, by another image
    assert all(u != image for image, u in enumerate(network.asked[1]))


def test_a_network_without_context_has_no_gap(split: ResidentSplit) -> None:
    torch.manual_seed(0)
    network = Selfie(CONFIG).eval()
    counts = make_task(network).context_counts(next(make(split).in_order([(0, IMAGES)])))
    own, shuffled, questions, images, squares = counts.tolist()
    assert own == shuffled
    assert (images, squares) == (IMAGES, 0)
    assert questions == IMAGES * MASKED
    assert 0 < own < questions


def test_context_gap_is_the_difference_of_shares() -> None:
    figures = context_gap(torch.tensor([60, 45, 80]))
    assert figures == pytest.approx({"held_out_accuracy": 0.75, "accuracy_shuffled": 0.5625, "context_gap": 0.1875})


def test_views_that_recipes_train_and_evaluate_on() -> None:
    cifar, imagenet = recipe("cifar10").pretrain, recipe("imagenet224").pretrain
    small = View.of(cifar, 4)
    assert small == View(size=32, grid=4, crop="pad", min_area=0.08, pad=4, pad_mode="zero", flip=True)
    assert small.plain() == View(size=32, grid=4, crop="pad", min_area=0.08, pad=0, pad_mode="zero", flip=False)
    large = View.of(dataclasses.replace(imagenet, min_area=0.25, pad=3, pad_mode="reflect"), 7)
    assert large == View(size=224, grid=7, crop="resized", min_area=0.25, pad=0, pad_mode="reflect", flip=True)
    assert large.plain() == View(size=224, grid=7, crop="pad", min_area=0.25, pad=0, pad_mode="reflect", flip=False)
    assert (large.shorter_side, small.shorter_side) == (256, 37)  # 36.6 rounded


def test_pixels_that_do_not_move_yet_are_no_images() -> None:
    pixels, key = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    still = Batch(view=View(size=SIDE), pixels=pixels, epoch_B=key, sample_B=key, labels_B=key)
    assert torch.equal(still.images(), pixels)
    cropped = dataclasses.replace(still, corner_B2=torch.zeros(2, 2, dtype=torch.int64))
    flipped = dataclasses.replace(still, flip_B=torch.ones(2, dtype=torch.bool))
    for moving in (cropped, flipped):
        with pytest.raises(AssertionError, match="cropped or flipped later"):
            moving.images()
