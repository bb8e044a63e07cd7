"""Labelled scenes to train on without any data: one large shape (its class) in a landscape lit by a low sun.

Each scene has a global layout, so that where a patch belongs shows only together with others: the horizon's height and
tilt, the vanishing point of the furrows, light that falls off from the sun across the picture, and shadows that point
away from it. Colours, places, sizes and rotations are drawn for each scene, so no pixel tells the class by itself.

A scene is a pure function of (seed, index), the same at any size but for anti-aliasing and grain. Pixels are made with
correctly rounded operations alone (+ - * / sqrt, comparisons; no sines), so that chunks and machines agree to the bit.

Shapes: B scenes, S = count, H = W pixels a side; single numbers are (B, 1, 1), planes (B, H, W), colours (B, 3, 1, 1).
Lengths are shares of the image's side, x to the right, y downwards.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.pipelines.shapes import SHAPES, Plane
from fastselfie.pipelines.source import ResidentSource, ResidentSplit
from fastselfie.randomness import Purpose, permutations, random_bits, uniform

CLASSES = tuple(SHAPES)
_SCENE, _GRAIN, _LABEL = 0, 1, 2  # what is drawn, in the place of the generator's epoch: scenes know no epochs
_DRAWS = 64
_GRAIN_SHARE = 0.02
_CHUNK_PIXELS = 1 << 16  # so that a chunk's planes stay in the processor's cache
FIRST_TEST = 10**10  # beyond any training scene, so that test scenes do not change with the number of training scenes


class _Draws:
    """Hands out a chunk's random numbers, one column after the other."""

    def __init__(self, seed: int, index_B: Tensor) -> None:
        draws_BK = uniform(seed, Purpose.SCENE, torch.full_like(index_B, _SCENE), index_B, _DRAWS)
        self._columns = iter(draws_BK.T.numpy().astype(np.float32))

    def __call__(self, low: float, high: float) -> Plane:
        column: Plane = next(self._columns)[:, None, None]
        return column * (high - low) + low


def _labels(seed: int, first: int, count: int) -> NDArray[np.int64]:
    """Scenes 10 k to 10 k + 9 have each class once, in an order of their own."""
    index_S = torch.arange(first, first + count)
    decade_S = index_S // len(CLASSES)
    order = permutations(seed, Purpose.SCENE, torch.full_like(decade_S, _LABEL), decade_S, len(CLASSES))
    labels_S: NDArray[np.int64] = order.gather(1, (index_S % len(CLASSES))[:, None])[:, 0].numpy()
    return labels_S


def _grain(seed: int, index_B: Tensor, size: int) -> Plane:
    """Noise for each pixel and colour, uniform in [-1, 1): (B, 3, size, size)."""
    bits = random_bits(seed, Purpose.SCENE, torch.full_like(index_B, _GRAIN), index_B, size * size).numpy()
    planes = [((bits >> shift) & 0xFFFF).astype(np.float32) for shift in (0, 16, 32)]
    grain: Plane = np.stack(planes, axis=1) * 2.0**-15 - 1
    return grain.reshape(-1, 3, size, size)


def _rgb(hue: Plane, saturation: Plane, value: Plane) -> Plane:
    """HSV to RGB, hue in turns: (B, 1, 1) each to (B, 3, 1, 1)."""
    k: Plane = (np.array([5, 3, 1], dtype=np.float32).reshape(3, 1, 1) + hue[:, None] * 6) % 6
    rgb: Plane = value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb


def _mix(a: Plane, b: Plane, share: Plane | float) -> Plane:
    return a + (b - a) * share


def _paint(image: Plane, colour: Plane, alpha: Plane) -> None:
    """Lays ``colour`` over ``image``, (B, 3, H, W), as far as ``alpha``, (B, H, W), covers it."""
    image += (colour - image) * alpha[:, None]


def _landscape(draw: _Draws, x: Plane, y: Plane, sun_x: Plane, sun_y: Plane, size: int) -> Plane:
    """Sky, sun, two mountains and furrowed ground: (B, 3, H, W), before the light is applied."""
    horizon, tilt, hue = draw(0.48, 0.74), draw(-0.22, 0.22), draw(0, 1)
    zenith = _rgb(hue, draw(0.4, 0.8), draw(0.5, 0.9))
    haze = _rgb(hue + draw(-0.2, 0.2), draw(0.15, 0.4), draw(0.88, 1))
    soil = _rgb(hue + draw(0.25, 0.75), draw(0.35, 0.65), draw(0.4, 0.75))
    skyline = horizon + tilt * (x - 0.5)
    depth = y - skyline
    image = _mix(haze, zenith, np.clip(depth * -1.7, 0, 1)[:, None])

    from_sun = np.sqrt((x - sun_x) ** 2 + (y - sun_y) ** 2)
    sunshine = _rgb(draw(0.08, 0.16), draw(0.1, 0.35), draw(1, 1))
    _paint(image, sunshine, 0.75 / (1 + (from_sun * 6) ** 2))
    _paint(image, sunshine, np.clip(0.5 + (0.055 - from_sun) * size, 0, 1))

    for share in (0.3, 0.5):  # the farther mountain is the hazier
        peak_x, peak_y, slope = draw(0, 1), horizon - draw(0.04, 0.24), draw(0.5, 1.1)
        inside = np.clip(0.5 + (y - peak_y - slope * np.abs(x - peak_x)) * size, 0, 1)
        colour = _mix(haze, soil, share)
        _paint(image, colour, inside)
        side = np.where(sun_x < peak_x, np.float32(1), np.float32(-1))
        _paint(image, colour * 0.72, inside * np.clip(0.5 + (x - peak_x) * side * size, 0, 1))

    along = (x - draw(0.1, 0.9)) / (np.maximum(depth, 0) + 0.1) * draw(0.7, 1.8) + draw(0, 1)
    furrow = np.abs(along - np.floor(along) - 0.5) * np.clip(depth * 5 - 0.2, 0, 1)
    near = np.clip(depth * 2.2, 0, 1)
    ground = _mix(_mix(haze, soil, 0.65), soil * 0.85, near[:, None]) * (1 - 0.7 * furrow)[:, None]
    _paint(image, ground, np.clip(0.5 + depth * size, 0, 1))
    return image


def _pebbles(image: Plane, draw: _Draws, x: Plane, y: Plane, sun_x: Plane, sun_y: Plane, size: int) -> None:
    """Small balls anywhere, each with a shadow: they look like parts of shapes and belong to no class."""
    for _ in range(4):
        centre_x, centre_y, radius = draw(0.04, 0.96), draw(0.04, 0.96), draw(0.022, 0.06)
        colour = _rgb(draw(0, 1), draw(0.3, 0.8), draw(0.6, 1))
        away_x, away_y = _unit(centre_x - sun_x, centre_y - sun_y)
        for offset, paint, alpha in ((radius * 0.7, colour * 0.1, 0.35), (radius * 0, colour, 1)):
            distance = np.sqrt((x - centre_x - away_x * offset) ** 2 + (y - centre_y - away_y * offset) ** 2)
            _paint(image, paint, alpha * np.clip(0.5 + (radius - distance) * size, 0, 1))


def _unit(x: Plane, y: Plane) -> tuple[Plane, Plane]:
    length = np.sqrt(x * x + y * y) + 1e-6
    return x / length, y / length


def _object(
    image: Plane, draw: _Draws, labels_B: NDArray[np.int64], x: Plane, y: Plane, sun: tuple[Plane, Plane]
) -> None:
    """The shape that is the class: a shadow away from the sun, a dark outline, a face brighter towards the sun."""
    size = image.shape[-1]
    centre_x, centre_y, radius = draw(0.3, 0.7), draw(0.32, 0.68), draw(0.175, 0.3)
    half_tangent = draw(-0.22, 0.22)  # of the rotation, up to 25 degrees: makes sine and cosine without computing any
    cosine = (1 - half_tangent**2) / (1 + half_tangent**2)
    sine = 2 * half_tangent / (1 + half_tangent**2)
    colour = _rgb(draw(0, 1), draw(0.55, 0.95), draw(0.75, 1))
    away_x, away_y = _unit(centre_x - sun[0], centre_y - sun[1])

    def distance(right: Plane, down: Plane) -> Plane:
        u, v = (right * cosine + down * sine) / radius, (down * cosine - right * sine) / radius
        result: Plane = np.empty_like(u)
        for label, shape in enumerate(SHAPES.values()):
            chosen = labels_B == label
            result[chosen] = shape(u[chosen], v[chosen])
        return result * radius

    right, down = x - centre_x, y - centre_y
    throw = radius * draw(0.25, 0.45)
    shadow = distance(right - away_x * throw, down - away_y * throw)
    _paint(image, colour * 0.08, 0.5 * np.clip(0.5 - shadow * 25, 0, 1))
    edge = distance(right, down)
    _paint(image, colour * 0.3, np.clip(0.5 - edge * size, 0, 1))
    facing = np.clip(0.85 - 0.4 * (right * away_x + down * away_y) / radius, 0.3, 1.2)
    _paint(image, colour * facing[:, None], np.clip(0.5 - (edge + 0.018) * size, 0, 1))


def _render(seed: int, index_B: Tensor, labels_B: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    draw = _Draws(seed, index_B)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, None, :], axis[None, :, None]
    sun = sun_x, sun_y = draw(0.05, 0.95), draw(0.06, 0.4)
    image = _landscape(draw, x, y, sun_x, sun_y, size)
    _pebbles(image, draw, x, y, sun_x, sun_y, size)
    _object(image, draw, labels_B, x, y, sun)
    light = 0.6 + 0.6 / (1 + 1.6 * ((x - sun_x) ** 2 + (y - sun_y) ** 2))
    image = image * light[:, None] + _GRAIN_SHARE * _grain(seed, index_B, size)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def render_scenes(seed: int, first: int, count: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Scenes ``first`` to ``first + count - 1`` of the endless series that ``seed`` names.

    Returns:
        images: uint8 (count, size, size, 3), RGB.
        labels: int64 (count,), indices into `CLASSES`; each class is drawn equally often.
    """
    images_SHW3 = np.empty((count, size, size, 3), dtype=np.uint8)
    labels_S = _labels(seed, first, count)
    step = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, count, step):
        stop = min(start + step, count)
        index_B = torch.arange(first + start, first + stop)
        images_SHW3[start:stop] = _render(seed, index_B, labels_S[start:stop], size)
    return images_SHW3, labels_S


def synthetic_source(size: int, train: int = 8192, test: int = 2048) -> ResidentSource:
    """Scenes of ``size`` pixels a side; the test scenes are none of the training scenes of any number."""
    train_images, train_labels = render_scenes(seed=0, first=0, count=train, size=size)
    test_images, test_labels = render_scenes(seed=0, first=FIRST_TEST, count=test, size=size)
    return ResidentSource(
        name="synthetic",
        train=ResidentSplit(images_SHW3=train_images, labels_S=train_labels),
        test=ResidentSplit(images_SHW3=test_images, labels_S=test_labels),
        classes=CLASSES,
    )
