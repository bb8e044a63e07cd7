"""What pretraining gains, paired by seed: means, deviations, Student-t intervals, and a word for each (paper, 3.2).

Two runs of one seed see the same labelled subset, order and crops, so their difference varies less than either of them.
An interval says what other seeds of finetuning would do to the mean difference. It takes differences as normal, which
three seeds can not check, and knows nothing of other pretraining runs where all of them start from one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from fastselfie.protocol.measured import BASE, Measured
from fastselfie.protocol.variants import VARIANTS

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over ``n`` seeds and their sample standard deviation (n - 1); no deviation of one."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean of ``n`` differences, each of two runs of one seed.

    Attributes:
        sd: of the differences. low, high: the 95% interval of the mean. p: of the two-sided paired t-test. All None
            with one pair. unpaired: seeds that only one of the two sides has, which are left out.
    """

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None
    p: float | None
    unpaired: int

    @property
    def verdict(self) -> str:
        """``gain``, ``loss``, ``within noise`` where the interval holds 0, or ``one seed``, which has no interval."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.low <= 0 <= self.high:
            return "within noise"
        return "gain" if self.low > 0 else "loss"


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample standard deviation; None of nothing."""
    found = list(values)
    if not found:
        return None
    return Spread(mean=statistics.fmean(found), sd=statistics.stdev(found) if len(found) > 1 else None, n=len(found))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """``first`` minus ``second``, each by seed; None where they have no seed in common."""
    common = sorted(set(first) & set(second))
    unpaired = len(set(first) ^ set(second))
    differences = spread(first[seed] - second[seed] for seed in common)
    if differences is None:
        return None
    mean, sd, n = differences.mean, differences.sd, differences.n
    if sd is None:
        return Paired(mean=mean, sd=None, n=n, low=None, high=None, p=None, unpaired=unpaired)
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    # Where all differences are equal, the t statistic is infinite, or 0 / 0.
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return Paired(mean=mean, sd=sd, n=n, low=mean - half, high=mean + half, p=p, unpaired=unpaired)


def accuracies(
    measured: Measured, *, variant: str = BASE, encoder: str, labels: str, pretrained: bool
) -> dict[int, float]:
    """Test accuracy by seed of the finished runs of one kind."""
    found = [
        score
        for score in measured.scores
        if (score.variant, score.encoder, score.labels, score.pretrained) == (variant, encoder, labels, pretrained)
    ]
    by_seed = {score.seed: score.accuracy for score in found}
    assert len(by_seed) == len(found), f"a seed twice in {variant}, {encoder}, {labels}, pretrained {pretrained}"
    return by_seed


def gain(measured: Measured, *, variant: str = BASE, encoder: str, labels: str) -> Paired | None:
    """Pretrained minus scratch.

    A variant that changes pretraining alone has no runs from scratch of its own: they would be the base's, which it is
    held against. One that finetunes another network has its own, and no gain before they are done.
    """
    pretrained = accuracies(measured, variant=variant, encoder=encoder, labels=labels, pretrained=True)
    scratch = accuracies(measured, variant=variant, encoder=encoder, labels=labels, pretrained=False)
    has_its_own = variant in VARIANTS and VARIANTS[variant].other_network(encoder)
    if not scratch and not has_its_own:
        scratch = accuracies(measured, encoder=encoder, labels=labels, pretrained=False)
    return paired(pretrained, scratch)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given.

    Among k comparisons the i-th smallest p is multiplied by k - i + 1, is no smaller than the one before it, and at
    most 1. To call those below 0.05 differences is to be wrong about any of them in at most 5% of protocols, however
    the comparisons depend on one another.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
