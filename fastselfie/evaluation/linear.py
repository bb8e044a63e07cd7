"""A linear classifier on frozen features: logistic regression with an L2 penalty.

Features are standardised, and the penalty's weight is chosen on a tenth of the training labels that is held back, never
on the test images; the classifier with that weight is then fitted to all training labels.
Shapes: S images to train on, T to test on, D features.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastselfie.errors import UserError
from fastselfie.evaluation.subsets import labelled_subset

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The inverse penalties C that are tried: the loss is C times the sum of cross entropies plus half the squared norm."""
HELD_BACK = 0.1
_ITERATIONS = 500
_SMALLEST = 1e-30  # a probability's floor in a cross entropy


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


def linear_probe(train_SD: Tensor, labels_S: Tensor, test_TD: Tensor, labels_T: Tensor, seed: int) -> Linear:
    """Choose the penalty, fit to all and test.

    The penalty is the one with the best accuracy on what is held back, and of several the one with the smallest cross
    entropy there: few samples tell penalties apart by accuracy only roughly.

    Args:
        train_SD, test_TD: fp32. labels_S, labels_T: int64, the former of at least two classes, one of them with two
            samples. All on the CPU. seed: decides which samples are held back.
    """
    x, y, held = train_SD.numpy(), labels_S.numpy(), np.zeros(len(labels_S), dtype=bool)
    held[_held_back(labels_S, seed).numpy()] = True
    tried = _Fits(x[~held], y[~held])
    scores = [tried.judged(strength, x[held], y[held]) for strength in STRENGTHS]
    best = min(range(len(STRENGTHS)), key=lambda index: (-scores[index][0], scores[index][1]))
    final = _Fits(x, y)
    accuracy, _ = final.judged(STRENGTHS[best], test_TD.numpy(), labels_T.numpy())
    return Linear(
        accuracy=accuracy, c=STRENGTHS[best], validation_accuracy=scores[best][0], converged=final.converged
    )  # fmt: skip


def _held_back(labels_S: Tensor, seed: int) -> Tensor:
    """Indices of a tenth of the samples, the same share of every class. A class keeps a single sample to train on."""
    chosen = labelled_subset(labels_S, HELD_BACK, seed)
    return chosen[labels_S.bincount()[labels_S[chosen]] > 1]


class _Fits:
    """Classifiers of one training set. Each fit begins where the one before it ended."""

    def __init__(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        from sklearn.linear_model import LogisticRegression  # a second to import
        from sklearn.preprocessing import StandardScaler

        self._scale = StandardScaler().fit(x)
        self._x, self._y = self._scale.transform(x), y
        self._model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
        self.converged = False

    def judged(self, strength: float, x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
        """Fit with C = ``strength``; accuracy and mean cross entropy on ``x`` and ``y``.

        A class that the training set lacks counts as certainly not expected.
        """
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said in the result
            self._model.set_params(C=strength).fit(self._x, self._y)
        self.converged = bool(self._model.n_iter_.max() < _ITERATIONS)
        share = self._model.predict_proba(self._scale.transform(x)).astype(np.float64)
        classes = self._model.classes_
        expected = np.where(classes == y[:, None], share, 0).sum(axis=1)
        losses = -np.log(np.maximum(expected, _SMALLEST))
        return float((classes[share.argmax(axis=1)] == y).mean()), float(losses.mean())
