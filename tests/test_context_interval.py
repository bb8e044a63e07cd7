"""The context gap's confidence interval: right answers image by image, counted exactly, against NumPy and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastselfie.models.selfie import Selfie
from fastselfie.pipelines.resident import ResidentPipeline
from fastselfie.pipelines.synthetic import synthetic_source
from fastselfie.pretext.selfie import SelfieTask, context_gap, context_gap_interval
from fastselfie.pretext.task import PixelFormat
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.session import count_over
from fastselfie.training.world import World
from tests.small_networks import SETTINGS, pretrain_config, question, randomise

CPU = torch.device("cpu")
T_9 = 2.262157  # Student's t, 9 degrees of freedom, two-sided 95%: from printed tables


def counts_of(right: list[int], shuffled: list[int], masked: int) -> Tensor:
    squares = sum((a - b) ** 2 for a, b in zip(right, shuffled, strict=True))
    return torch.tensor([sum(right), sum(shuffled), masked * len(right), len(right), squares])


def test_by_hand() -> None:
    """Ten images of four questions. In shares the differences are 1/2, 0, 1/4, ...: mean 0.15 and so on."""
    right, shuffled = [4, 2, 3, 1, 2, 4, 0, 3, 2, 2], [2, 2, 2, 1, 3, 2, 0, 2, 1, 2]
    d = (np.array(right) - np.array(shuffled)) / 4
    margin = T_9 * d.std(ddof=1) / np.sqrt(10)
    counts = counts_of(right, shuffled, 4)
    figures = context_gap_interval(counts)
    assert d.mean() == 0.15
    assert figures == pytest.approx({"context_gap_low": 0.15 - margin, "context_gap_high": 0.15 + margin}, rel=1e-6)
    assert context_gap(counts)["context_gap"] == pytest.approx(0.15)


def test_two_images_have_an_interval() -> None:
    """Differences of 1/2 and 0: mean 1/4, its standard error 1/4; t of one degree of freedom is 12.7062."""
    figures = context_gap_interval(counts_of([3, 2], [1, 2], 4))
    expected = {"context_gap_low": 0.25 - 12.706205 / 4, "context_gap_high": 0.25 + 12.706205 / 4}
    assert figures == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("own", "other"), [(2, 2), (4, 1)])
def test_images_that_are_all_alike_have_no_spread(own: int, other: int) -> None:
    counts = counts_of([own] * 7, [other] * 7, 4)
    gap = context_gap(counts)["context_gap"]
    assert context_gap_interval(counts) == {"context_gap_low": gap, "context_gap_high": gap}


def test_a_single_image_has_no_interval() -> None:
    assert context_gap_interval(counts_of([3], [1], 4)) == {}


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of images whose true gap is known, 95% of 400 intervals hold it: give or take four standard errors."""
    generator, true, held = np.random.default_rng(0), 4 * (0.6 - 0.4), 0
    for _ in range(400):
        right, shuffled = generator.binomial(4, 0.6, 40).tolist(), generator.binomial(4, 0.4, 40).tolist()
        figures = context_gap_interval(counts_of(right, shuffled, 4))
        held += figures["context_gap_low"] <= true / 4 <= figures["context_gap_high"]
    assert abs(held / 400 - 0.95) < 4 * (0.95 * 0.05 / 400) ** 0.5


@pytest.mark.parametrize("what", ["random", "ties", "nan"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["4x4", "7x7"])
def test_answers_of_each_image_add_up_to_the_heads(settings: dict[str, Any], what: str) -> None:
    """Also where scores are equal or no numbers: the first patch counts as chosen."""
    config = pretrain_config(**settings)
    torch.manual_seed(0)
    network = Selfie(config).eval()
    _, places_BN = question(config, 5)
    u_BD, h_BmD = torch.randn(5, 64), torch.randn(5, config.patches - config.visible, 64)
    if what == "ties":
        h_BmD[1:3] = 1.0
    if what == "nan":
        h_BmD[2] = float("nan")
    with torch.no_grad():
        right_B = network.right_answers(u_BD, h_BmD, places_BN)
        _, right = network.judge(u_BD, h_BmD, places_BN)
        for image in range(5):
            alone = slice(image, image + 1)
            assert right_B[image] == network.judge(u_BD[alone], h_BmD[alone], places_BN[alone])[1]
    assert right_B.dtype == torch.int64
    assert right_B.sum() == right
    if what != "random":
        assert right_B[2] == 1


@pytest.mark.parametrize("masks", ["image", "batch"])
def test_a_whole_evaluation(masks: Any) -> None:
    """Over chunks: the same integers as of single images, and their interval, in NumPy. Masks are each image's own."""
    config = pretrain_config(masks=masks)
    torch.manual_seed(0)
    network = Selfie(config).eval()
    randomise(network)
    task = SelfieTask(config, network, PixelFormat.of(config, CPU))
    source = synthetic_source(32, train=40, test=24)
    assert source.test is not None
    pipeline = ResidentPipeline(source.test, view=task.view.plain(), seed=0, device=CPU)

    total = count_over(World(rank=0, size=1, device=CPU), pipeline, 24, 8, 5, task.context_counts, Quarantine(24, 0.1))
    right, shuffled = [], []
    for batch in pipeline.in_order([(0, 8), (8, 16), (16, 24)]):
        places_Bm, chosen_Bm = task.placements(batch)
        right += (places_Bm == chosen_Bm).sum(dim=1).tolist()
        with torch.no_grad():
            patches, places_BN = task._question(batch)
            u_BD, h_BmD = network.encode(patches, places_BN)
            for image in range(8):
                u_D, places_m = u_BD[image - 1].numpy(), places_BN[image, config.visible :]
                v_mD = u_D + network.positions()[places_m].numpy()
                scores = v_mD @ h_BmD[image].numpy().T
                shuffled.append(int((scores.argmax(axis=1) == np.arange(len(places_m))).sum()))
    assert total.tolist() == counts_of(right, shuffled, 4).tolist()
    d = (np.array(right) - np.array(shuffled)) / 4
    margin = 2.068658 * d.std(ddof=1) / np.sqrt(24)  # t, 23 degrees of freedom
    figures = context_gap_interval(total)
    assert d.std() > 0
    assert [figures["context_gap_low"], figures["context_gap_high"]] == pytest.approx(
        [d.mean() - margin, d.mean() + margin], rel=1e-6
    )
