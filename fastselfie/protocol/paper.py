"""The paper's own numbers: its Table 1 and Table 2, as printed. Its 2% in Figure 4 is only drawn, so it has none here.

Means and sample deviations of five runs. Where the two tables print one quantity differently (ResNet-50 on 10% of
ImageNet: 61.9 and 61.8), each of ours shows its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastselfie.config import RESNET36_ATTENTION, RESNET50, label_share
from fastselfie.protocol.gains import Spread
from fastselfie.protocol.measured import Measured

RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Printed:
    """Two test accuracies and the gain beside them, as shares. In Table 1 ``first`` is supervised, in Table 2
    ResNet-50; ``second`` is pretrained, or ResNet-36 + attention pooling."""

    first: Spread
    second: Spread
    gain: float


def _printed(first: float, sd: float, second: float, second_sd: float, gain: float) -> Printed:
    """From percent."""
    one, other = (
        Spread(mean=round(mean / 100, 4), sd=round(s / 100, 4), n=RUNS)
        for mean, s in ((first, sd), (second, second_sd))
    )
    return Printed(first=one, second=other, gain=round(gain / 100, 4))


CLASSES = {"cifar10": 10, "imagenet32": 1_000, "imagenet224": 1_000}
TABLE_1 = {
    ("cifar10", 0.05): _printed(75.9, 0.7, 75.9, 0.4, 0.0),
    ("cifar10", 0.08): _printed(79.3, 1.0, 80.3, 0.3, 1.0),
    ("cifar10", 0.20): _printed(88.3, 0.3, 89.1, 0.5, 0.8),
    ("cifar10", 1.00): _printed(95.5, 0.2, 95.7, 0.1, 0.2),
    ("imagenet32", 0.05): _printed(13.1, 0.8, 18.3, 0.1, 5.2),
    ("imagenet32", 0.10): _printed(25.9, 0.5, 30.2, 0.5, 4.3),
    ("imagenet32", 0.20): _printed(32.7, 0.4, 33.5, 0.2, 0.8),
    ("imagenet32", 1.00): _printed(55.7, 0.6, 56.4, 0.6, 0.7),
    ("imagenet224", 0.05): _printed(35.6, 0.7, 46.7, 0.4, 11.1),
    ("imagenet224", 0.10): _printed(59.6, 0.2, 61.9, 0.2, 2.3),
    ("imagenet224", 0.20): _printed(65.7, 0.2, 67.1, 0.2, 1.4),
    ("imagenet224", 1.00): _printed(76.9, 0.2, 77.0, 0.1, 0.1),
}
"""By recipe and share of the labels: ResNet-50 without and with pretraining."""
TABLE_2 = {
    ("cifar10", 0.08): _printed(80.3, 0.3, 81.3, 0.1, 1.0),
    ("cifar10", 1.00): _printed(95.7, 0.1, 95.4, 0.2, -0.3),
    ("imagenet224", 0.10): _printed(61.8, 0.2, 62.1, 0.2, 0.3),
    ("imagenet224", 1.00): _printed(77.0, 0.1, 77.5, 0.1, 0.5),
}
"""By recipe and share of the labels: both encoders after pretraining."""


def has_numbers(measured: Measured) -> bool:
    """Whether the paper measured on such data: other classes, or rendered scenes, are none of its benchmarks."""
    rendered = measured.data.partition(":")[0] == "synthetic"  # synthetic:5000 has so many of them
    return CLASSES.get(measured.recipe) == measured.classes and not rendered


def table_1(measured: Measured, labels: str, encoder: str) -> Printed | None:
    """The paper's row of Table 1; None where it has none."""
    known = encoder == RESNET50 and has_numbers(measured)
    return TABLE_1.get((measured.recipe, label_share(labels))) if known else None


def table_2(measured: Measured, labels: str) -> Printed | None:
    """The paper's row of Table 2; None where it has none."""
    return TABLE_2.get((measured.recipe, label_share(labels))) if has_numbers(measured) else None


def accuracy(measured: Measured, labels: str, encoder: str, pretrained: bool) -> Spread | None:
    """The paper's test accuracy of an encoder, from whichever table has it; None where none has."""
    if encoder == RESNET36_ATTENTION:
        second = table_2(measured, labels)
        return second.second if second is not None and pretrained else None
    first = table_1(measured, labels, encoder)
    return None if first is None else first.second if pretrained else first.first
