"""A linear classifier on frozen features: logistic regression with an L2 penalty.

Features are standardised, and the penalty's weight is chosen on a tenth of the training labels that is held back, never
on the test images; the classifier with that weight is then fitted to all training labels.
Shapes: S images to train on, T to test on, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastselfie.errors import UserError
from fastselfie.evaluation.logistic import Logistic, fit
from fastselfie.evaluation.subsets import labelled_subset

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The inverse penalties C that are tried: the loss is C times the sum of cross entropies plus half the squared norm."""
FITS = len(STRENGTHS) + 1
HELD_BACK = 0.1
_CONSTANT = 1e-6  # of its mean: what fp32 features that are all the same deviate by
_ROWS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Linear:
    """What came of it.

    Attributes:
        accuracy: on the test images. c: the inverse penalty that was chosen. validation_accuracy: with that, on the
            labels held back. converged: whether the last fit ended before its iterations did.
    """

    accuracy: float
    c: float
    validation_accuracy: float
    converged: bool


def check_labels(labels_S: Tensor, labels: str) -> None:
    """Refuse labels of which none can be held back.

    Raises:
        UserError: there are no two of a class.
    """
    if not len(_held_back(labels_S, 0)):
        raise UserError(
            f"--labels {labels}: leaves one image of each class, and the linear classifier holds some back to choose"
            " its penalty; take a larger share, or --no-linear"
        )


def linear_probe(
    train_SD: Tensor, labels_S: Tensor, test_TD: Tensor, labels_T: Tensor, seed: int, device: torch.device,
    done: Callable[[int], None] = lambda fits: None,
) -> Linear:  # fmt: skip
    """Choose the penalty, fit to all and test.

    The penalty is the one with the best accuracy on what is held back, and of several the one with the smallest cross
    entropy there: few samples tell penalties apart by accuracy only roughly. Each fit begins where the one before it
    ended.

    Args:
        train_SD, test_TD: fp32. labels_S, labels_T: int64, the former of at least two classes, one of them with two
            samples. All on the CPU. seed: decides which samples are held back. device: computes, on a copy of
            ``train_SD`` of its own. done: told of each of `FITS` fits.
    """
    held_S = torch.zeros(len(labels_S), dtype=torch.bool)
    held_S[_held_back(labels_S, seed)] = True
    order_S, known = held_S.long().argsort(stable=True), int((~held_S).sum())  # what is held back comes last
    classes, y_S = labels_S[order_S].unique(return_inverse=True)  # each among those known
    x_SD, y_S = train_SD[order_S].to(device), y_S.to(device)
    mean_D, deviation_D = _scale(x_SD)
    x_SD.sub_(mean_D).div_(deviation_D)
    tried: list[Logistic] = []
    for strength in STRENGTHS:
        tried.append(fit(x_SD[:known], y_S[:known], len(classes), strength, tried[-1] if tried else None))
        done(1)
    scores = [classifier.judged(x_SD[known:], y_S[known:]) for classifier in tried]
    best = min(range(len(STRENGTHS)), key=lambda index: (-scores[index][0], scores[index][1]))
    final = fit(x_SD, y_S, len(classes), STRENGTHS[best], tried[best])
    done(1)
    chosen_T = torch.cat([
        final.chosen((part_TD.to(device) - mean_D) / deviation_D).cpu() for part_TD in test_TD.split(_ROWS)
    ])  # fmt: skip
    accuracy = float((classes[chosen_T] == labels_T).double().mean())
    return Linear(
        accuracy=accuracy, c=STRENGTHS[best], validation_accuracy=scores[best][0], converged=final.converged
    )  # fmt: skip


def _held_back(labels_S: Tensor, seed: int) -> Tensor:
    """Indices of a tenth of the samples, the same share of every class. A class keeps a single sample to train on."""
    chosen = labelled_subset(labels_S, HELD_BACK, seed)
    return chosen[labels_S.bincount()[labels_S[chosen]] > 1]


def _scale(x_SD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, fp32 (D,), found in fp64; 1 for one that is constant."""
    parts = x_SD.split(_ROWS)
    mean_D = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in parts]).sum(dim=0) / len(x_SD)
    squares_D = torch.stack([(part - mean_D).square().sum(dim=0) for part in parts]).sum(dim=0)
    deviation_D = (squares_D / len(x_SD)).sqrt()
    varies_D = deviation_D > _CONSTANT * mean_D.abs()
    return mean_D.float(), torch.where(varies_D, deviation_D, 1.0).float()
