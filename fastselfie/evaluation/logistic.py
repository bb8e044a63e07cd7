"""Multinomial logistic regression with an L2 penalty, on the device that holds the features, by scipy's L-BFGS.

scikit-learn has the same, with several copies of features and scores, and on a GPU only if a variable is in the
environment before scipy is imported. Of ImageNet's 1.28 million images, 1,024 features and thousand classes an
evaluation is 5 TFLOP, of which a fit takes dozens, and its scores are 5 GB: here a part of them exists at a time.
Shapes: S images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ITERATIONS = 500
TOLERANCE = 1e-3
"""A fit has converged when no entry of its gradient, a mean over the images, exceeds this share of 1 / C: the classes
share the images, and entries are the smaller the more of them there are. With ten, scikit-learn's 1e-4."""
STILL = 1e-8
"""It also has when a step lowers the objective by no more than this share of it: what fp32 products leave uncertain."""
_CHUNK = 1 << 24  # features or scores of one product


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """A classifier.

    Attributes:
        weight_CD, bias_C: fp32, on the device of the features. converged: whether the fit ended by its tolerance.
    """

    weight_CD: Tensor
    bias_C: Tensor
    converged: bool

    def chosen(self, x_SD: Tensor) -> Tensor:
        """The likeliest class of each image: int64 (S,)."""
        return F.linear(x_SD, self.weight_CD, self.bias_C).argmax(dim=1)

    def judged(self, x_SD: Tensor, y_S: Tensor) -> tuple[float, float]:
        """Accuracy and mean cross entropy, for at least one image; ``y_S`` in [0, C)."""
        right = loss = 0.0
        for x, y in _chunks(x_SD, y_S, len(self.bias_C)):
            scores = F.linear(x, self.weight_CD, self.bias_C)
            right += int((scores.argmax(dim=1) == y).sum())
            loss += float(F.cross_entropy(scores, y, reduction="none").sum(dtype=torch.float64))
        return right / len(y_S), loss / len(y_S)


def fit(x_SD: Tensor, y_S: Tensor, classes: int, strength: float, start: Logistic | None = None) -> Logistic:
    """Minimise ``strength`` times the sum of cross entropies plus half the weights' squared norm.

    Args:
        x_SD: fp32, of about unit scale. y_S: int64 in [0, ``classes``), on the same device. start: where to begin; at
            0 when not given.
    """
    import scipy.optimize  # takes a while

    S, D = x_SD.shape
    size, penalty = classes * D, 1 / (strength * S)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = (part.requires_grad_() for part in _parts(flat, classes, x_SD.device))
        loss = torch.zeros((), dtype=torch.float64, device=x_SD.device)
        for x, y in _chunks(x_SD, y_S, classes):
            losses = F.cross_entropy(F.linear(x, weight, bias), y, reduction="none")
            part = losses.sum(dtype=torch.float64)
            part.backward()
            loss += part.detach()
        assert weight.grad is not None
        assert bias.grad is not None
        slope = torch.cat([weight.grad.flatten(), bias.grad]).cpu().numpy().astype(np.float64) / S
        slope[:size] += penalty * flat[:size]
        return float(loss) / S + penalty / 2 * float(flat[:size] @ flat[:size]), slope

    before = np.zeros(size + classes)
    if start is not None:
        before[:] = torch.cat([start.weight_CD.flatten(), start.bias_C]).cpu().numpy()
    options: dict[str, Any] = {"maxiter": ITERATIONS, "maxls": 50, "gtol": TOLERANCE / classes, "ftol": STILL}
    found = scipy.optimize.minimize(objective, before, method="L-BFGS-B", jac=True, options=options)
    weight, bias = _parts(found.x, classes, x_SD.device)
    return Logistic(weight_CD=weight, bias_C=bias, converged=bool(found.success))


def _parts(flat: NDArray[np.float64], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and biases (C) in fp32 of what the optimiser holds as one vector in fp64."""
    values = torch.from_numpy(flat).float().to(device)
    return values[:-classes].view(classes, -1), values[-classes:]


def _chunks(x_SD: Tensor, y_S: Tensor, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and labels of some images at a time."""
    rows = max(1, _CHUNK // max(classes, x_SD.shape[1]))
    return zip(x_SD.split(rows), y_S.split(rows), strict=True)
