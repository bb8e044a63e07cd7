"""The paper's figure 2 against pictures put together by hand, pixel by pixel."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastselfie.config import PretrainConfig
from fastselfie.report.page import report
from fastselfie.report.pictures import RIGHT, WRONG, data_uri, enlargement, frame_width, framed, sheet
from fastselfie.report.placements import Moment, Placements, read_placements
from tests.run_folders import write_placements, write_pretraining

CASES = [
    # pixels a side, patch, masked places, the places that the patches put there come from
    (32, 8, (0, 5, 10, 15), (5, 5, 10, 0)),
    (224, 32, (48, 3, 24, 7, 8), (3, 3, 24, 3, 8)),
]


def noise(size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 255, (size, size, 3), np.uint8)


def by_hand(
    picture: NDArray[np.uint8], patch: int, places: tuple[int, ...], chosen: tuple[int, ...], factor: int, width: int
) -> NDArray[np.uint8]:
    """Every pixel on its own: of the frame, of the patch that was put there, or of the picture."""
    size, grid = len(picture) * factor, len(picture) // patch
    source = dict(zip(places, chosen, strict=True))
    shown = np.empty((size, size, 3), np.uint8)
    for y in range(size):
        for x in range(size):
            row, column, v, u = y // factor // patch, x // factor // patch, y % (factor * patch), x % (factor * patch)
            place = row * grid + column
            if place not in source:
                shown[y, x] = picture[y // factor, x // factor]
            elif min(u, v, factor * patch - 1 - u, factor * patch - 1 - v) < width:
                shown[y, x] = (255, 255, 255) if source[place] == place else (230, 25, 35)
            else:
                from_row, from_column = divmod(source[place], grid)
                shown[y, x] = picture[from_row * patch + v // factor, from_column * patch + u // factor]
    return shown


@pytest.mark.parametrize(("size", "patch", "places", "chosen"), CASES)
def test_composition(size: int, patch: int, places: tuple[int, ...], chosen: tuple[int, ...]) -> None:
    picture = noise(size)
    moment = Moment(step=0, places=(places,), chosen=(chosen,))
    factor = 256 // size if size < 128 else 1
    width = {32: 5, 224: 2}[size]
    shown = framed(Placements(grid=size // patch, pictures=(picture,), moments=(moment,)), 0, moment)
    np.testing.assert_array_equal(shown, by_hand(picture, patch, places, chosen, factor, width))
    assert moment.right(0) == sum(place == source for place, source in zip(places, chosen, strict=True))


def test_enlargement_is_whole_and_enough() -> None:
    assert [enlargement(size) for size in (16, 32, 64, 96, 100, 128, 224)] == [16, 8, 4, 3, 3, 1, 1]
    assert [frame_width(side) for side in (16, 32, 64)] == [2, 2, 5]
    assert RIGHT != WRONG


@pytest.mark.parametrize("enlarged", [True, False])
def test_data_uri(enlarged: bool) -> None:
    image = np.full((32, 32, 3), (200, 40, 90), np.uint8)
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", data_uri(image, enlarged)).groups()  # type: ignore[union-attr]
    assert kind == ("png" if enlarged else "jpeg")
    with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
        difference = np.asarray(decoded.convert("RGB")).astype(int) - image
    assert abs(difference).max() <= (0 if enlarged else 3)


def test_sheet_shows_every_picture_at_every_moment() -> None:
    picture = np.full((128, 128, 3), (10, 200, 30), np.uint8)
    moments = tuple(Moment(step=step, places=((0, 1),) * 2, chosen=((1, 0),) * 2) for step in (0, 7, 900))
    with Image.open(io.BytesIO(sheet(Placements(grid=4, pictures=(picture,) * 2, moments=moments)))) as image:
        green = (np.asarray(image) == (10, 200, 30)).all(axis=2)
    hidden = 2 * (32**2 - 28**2)
    assert green.sum() == 2 * 3 * (128**2 - hidden)


def config(keep: float = 0.75) -> PretrainConfig:
    return PretrainConfig(recipe="tiny", keep=keep)


def test_reading(tmp_path: Path) -> None:
    run = write_pretraining(tmp_path / "run")
    assert read_placements(run, config()) is None
    moments = [
        {"step": step, "places": [[3, 1], [0, 2], [4, 5]], "chosen": [[1, 1], [0, 2], [5, 4]]} for step in (0, 9)
    ]
    pictures = [noise(32, seed) for seed in range(3)]
    write_placements(run, pictures, moments)
    with (run / "placements" / "moments.jsonl").open("a") as file:
        file.write('{"step": 20, "places": [[')  # the run is at it
    read = read_placements(run, config())
    assert read is not None
    assert [moment.step for moment in read.moments] == [0, 9]
    assert [read.moments[1].right(picture) for picture in range(3)] == [1, 2, 0]
    for was, there in zip(pictures, read.pictures, strict=True):
        np.testing.assert_array_equal(was, there)


def test_the_page_shows_what_there_is(tmp_path: Path) -> None:
    run = write_pretraining(tmp_path / "run")
    report([run], tmp_path / "report.html")
    assert "No pictures of placed patches in run:" in (tmp_path / "report.html").read_text()
    assert not (run / "figures" / "placements.png").exists()
    moments = [{"step": step, "places": [[3, 1]] * 3, "chosen": [[1, 1]] * 3} for step in (0, 12, 40)]
    write_placements(run, [noise(32)] * 3, moments)
    report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 9
    assert page.count('alt="Picture 3 at step 12: 1 of 2 masked patches in place"') == 1
    assert (run / "figures" / "placements.png").read_bytes() == sheet(read_placements(run, config()))  # type: ignore[arg-type]
