"""Synthetic scenes are a function of (seed, index), balanced, the same at every size, neither trivial nor hopeless."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastselfie.pipelines import synthetic
from fastselfie.pipelines.synthetic import CLASSES, render_scenes, synthetic_source


def test_any_chunk_gives_the_same_scenes() -> None:
    images, labels = render_scenes(3, 0, 150, 32)  # crosses a chunk's border
    for first, count in ((0, 1), (5, 1), (63, 2), (97, 53)):
        part, part_labels = render_scenes(3, first, count, 32)
        np.testing.assert_array_equal(part, images[first : first + count])
        np.testing.assert_array_equal(part_labels, labels[first : first + count])


def test_the_same_everywhere() -> None:
    """These scenes as they were first drawn, on another processor or library version too: no operation is inexact."""
    images, labels = render_scenes(0, 0, 100, 32)
    assert labels[:10].tolist() == [1, 4, 7, 3, 9, 8, 5, 0, 2, 6]
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == "4a04aab546a2488d4f48b4dc1b46308ffde0e2b9794626f2989ba8e051e9e2ad"
    )


def test_seeds_and_indices_differ() -> None:
    a, _ = render_scenes(0, 0, 20, 32)
    b, _ = render_scenes(1, 0, 20, 32)
    scenes = np.concatenate([a, b]).reshape(40, -1).astype(int)
    distances = np.abs(scenes[:, None] - scenes[None]).mean(axis=2) + 255 * np.eye(40)
    assert distances.min() > 10


@pytest.mark.parametrize("first", [0, 10, synthetic.FIRST_TEST])
def test_labels_are_balanced_and_without_order(first: int) -> None:
    labels = synthetic._labels(0, first, 1000)
    assert labels.dtype == np.int64
    assert (np.sort(labels.reshape(100, 10)) == np.arange(10)).all()
    assert len({tuple(decade) for decade in labels.reshape(100, 10)}) > 95


@pytest.mark.parametrize("size", [8, 48, 224])
def test_sizes(size: int) -> None:
    images, labels = render_scenes(0, 0, 3, size)
    assert images.shape == (3, size, size, 3)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert labels.tolist() == [1, 4, 7]


def test_one_scene_at_two_sizes() -> None:
    small, _ = render_scenes(0, 0, 50, 32)
    large, _ = render_scenes(0, 0, 50, 128)
    averaged = large.reshape(50, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    same = np.abs(averaged - small).mean(axis=(1, 2, 3))
    other = np.abs(averaged - np.roll(small, 1, axis=0)).mean(axis=(1, 2, 3))
    assert same.max() < 8  # of 255: grain and outlines
    assert other.min() > 15


def accuracy_of_nearest_mean(
    train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], truth: NDArray[Any]
) -> float:
    means = np.stack([train[labels == label].mean(axis=0) for label in range(10)])
    return float((((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1) == truth).mean())


def test_classes_can_be_learned_but_not_from_raw_pixels() -> None:
    source = synthetic_source(32, train=2000, test=500)
    train, test = (split.images_SHW3.reshape(len(split), -1) / 255 for split in (source.train, source.test))
    truth = source.test.labels_S
    # Edges, not colours, tell a shape: the plain mean of pixels is near chance (0.1), that of edge strengths above it.
    edges, test_edges = (
        np.abs(np.diff(split.images_SHW3.mean(axis=3), axis=2)).reshape(len(split), -1)
        for split in (source.train, source.test)
    )
    assert accuracy_of_nearest_mean(train, source.train.labels_S, test, truth) < 0.25
    assert 0.2 < accuracy_of_nearest_mean(edges, source.train.labels_S, test_edges, truth) < 0.5


def test_source() -> None:
    source = synthetic_source(16, train=40, test=30)
    assert (len(source.train), len(source.test)) == (40, 30)
    assert source.classes == CLASSES
    assert len(CLASSES) == 10
    for scene in source.test.images_SHW3:
        assert not (scene == source.train.images_SHW3).all(axis=(1, 2, 3)).any()
    larger = synthetic_source(16, train=50, test=30)
    np.testing.assert_array_equal(larger.train.images_SHW3[:40], source.train.images_SHW3)
    np.testing.assert_array_equal(larger.test.images_SHW3, source.test.images_SHW3)
