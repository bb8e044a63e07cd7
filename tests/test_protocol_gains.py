"""Means, deviations, intervals and verdicts of a protocol, against numbers worked out by hand and against SciPy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fastselfie.protocol.gains import Paired, accuracies, gain, holm, paired, spread
from tests.protocol_folders import measured, scores

HERE = Path("protocol")
SCRATCH = {0: 0.70, 1: 0.72, 2: 0.74}
PRETRAINED = {0: 0.73, 1: 0.74, 2: 0.78}


def test_mean_and_sample_deviation() -> None:
    found = spread(PRETRAINED.values())
    assert found is not None
    # Deviations from 0.75: -0.02, -0.01, 0.03. Their squares: 0.0004 + 0.0001 + 0.0009 = 0.0014, over n - 1 = 2.
    assert (found.mean, found.sd, found.n) == pytest.approx((0.75, math.sqrt(0.0007), 3))
    assert spread([]) is None
    alone = spread([0.5])
    assert alone is not None
    assert (alone.mean, alone.sd, alone.n) == (0.5, None, 1)


def test_a_gain_by_hand() -> None:
    """Differences 0.03, 0.02, 0.04: mean 0.03, deviation 0.01.

    With two degrees of freedom Student's t is known in closed form: its 97.5% quantile is
    0.95 / sqrt(2 * 0.975 * 0.025), and the two-sided p of t is 1 - t / sqrt(2 + t^2).
    """
    found = paired(PRETRAINED, SCRATCH)
    assert found is not None
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert quantile == pytest.approx(4.302653)
    half = quantile * 0.01 / math.sqrt(3)
    t = 0.03 / (0.01 / math.sqrt(3))
    assert (found.mean, found.sd, found.n) == pytest.approx((0.03, 0.01, 3))
    assert (found.low, found.high) == pytest.approx((0.03 - half, 0.03 + half))
    assert found.low == pytest.approx(0.0051586, abs=1e-6)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert found.verdict == "gain"


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_gain_as_scipy_has_it(seeds: int) -> None:
    draw = np.random.default_rng(seeds)
    first, second = draw.normal(0.8, 0.02, seeds), draw.normal(0.79, 0.02, seeds)
    found = paired(dict(enumerate(first.tolist())), dict(enumerate(second.tolist())))
    theirs = stats.ttest_rel(first, second)
    low, high = theirs.confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high, found.p) == pytest.approx((low, high, theirs.pvalue))


def test_seeds_are_paired_and_not_their_order() -> None:
    found = paired({2: 0.78, 0: 0.73, 1: 0.74}, SCRATCH)
    assert found == paired(PRETRAINED, SCRATCH)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.03, -0.01, 0.01), "within noise"),  # 0.01 +- 4.3027 * 0.02 / sqrt(3), which is 0.0497
        ((-0.03, -0.02, -0.04), "loss"),
        ((0.03, 0.02, 0.04), "gain"),
        ((0.0, 0.0, 0.0), "within noise"),
        ((0.25, 0.25), "gain"),
        ((0.5,), "one seed"),
    ],
)
def test_verdicts(differences: tuple[float, ...], verdict: str) -> None:
    found = paired(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert found is not None
    assert found.verdict == verdict


def test_one_seed_has_no_interval() -> None:
    assert paired({3: 0.75}, {3: 0.5}) == Paired(mean=0.25, sd=None, n=1, low=None, high=None, p=None, unpaired=0)


def test_equal_differences_have_a_p_value() -> None:
    """Where the t statistic is infinite, or 0 / 0."""
    same, other = (paired({0: level, 1: level}, {0: 0.5, 1: 0.5}) for level in (0.5, 0.75))
    assert same is not None
    assert other is not None
    assert (same.p, other.p) == (1.0, 0.0)


def test_seeds_without_a_partner_are_left_out_and_counted() -> None:
    found = paired(PRETRAINED | {7: 0.99, 8: 0.01}, SCRATCH | {9: 0.5})
    whole = paired(PRETRAINED, SCRATCH)
    assert found is not None
    assert whole is not None
    assert (found.mean, found.low, found.n, found.unpaired) == (whole.mean, whole.low, 3, 3)
    assert paired({0: 0.5}, {1: 0.5}) is None


def test_a_variant_is_held_against_the_bases_runs_from_scratch() -> None:
    found = measured(
        HERE, *scores(HERE, SCRATCH, pretrained=False), *scores(HERE, PRETRAINED, variant="depth-1"),
        *scores(HERE, {0: 0.9}, labels="5%"),
    )  # fmt: skip
    assert gain(found, variant="depth-1", encoder="resnet50", labels="8%") == paired(PRETRAINED, SCRATCH)
    assert gain(found, encoder="resnet50", labels="8%") is None, "the base itself has no pretrained run"
    own = measured(HERE, *found.scores, *scores(HERE, {0: 0.5, 1: 0.5}, variant="depth-1", pretrained=False))
    against_own = gain(own, variant="depth-1", encoder="resnet50", labels="8%")
    assert against_own is not None
    assert against_own.mean == pytest.approx((0.23 + 0.24) / 2)


def test_another_network_is_never_held_against_the_bases_runs_from_scratch() -> None:
    """Half done, a variant whose own runs from scratch are to come has no gain yet, not a wrong one."""
    for variant, encoder in (("trunk-patches", "resnet50"), ("pooler-mean", "resnet36-attention")):
        base = scores(HERE, SCRATCH, pretrained=False, encoder=encoder)
        found = measured(HERE, *base, *scores(HERE, PRETRAINED, variant=variant, encoder=encoder))
        assert gain(found, variant=variant, encoder=encoder, labels="8%") is None
    same_network = measured(
        HERE, *scores(HERE, SCRATCH, pretrained=False), *scores(HERE, PRETRAINED, variant="pooler-mean")
    )
    assert gain(same_network, variant="pooler-mean", encoder="resnet50", labels="8%") == paired(PRETRAINED, SCRATCH)


def test_a_seed_counts_once() -> None:
    twice = measured(HERE, *scores(HERE, {0: 0.5}), *scores(HERE, {0: 0.6}))
    with pytest.raises(AssertionError, match="a seed twice"):
        accuracies(twice, encoder="resnet50", labels="8%", pretrained=True)


def test_holms_adjustment() -> None:
    # In order: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
