"""Weighted k nearest neighbours on frozen features (Wu, Xiong, Yu, Lin 2018, section 3.4).

Shapes: S labelled images, B asked ones, D features, C classes, k neighbours, K = k + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.config import KNN_NEIGHBOURS, KNN_TEMPERATURE

_CHUNK = 1 << 24  # numbers held at once, similarities or votes


@torch.no_grad()
def nearest_classes(
    asked_BD: Tensor, known_SD: Tensor, labels_S: Tensor, *, k: int = KNN_NEIGHBOURS,
    temperature: float = KNN_TEMPERATURE,
) -> Tensor:  # fmt: skip
    """The class that the ``k`` nearest neighbours of each asked image vote for: int64 (B,).

    Near is a large cosine similarity s; a neighbour's vote weighs exp(s / temperature). Of equally near ones the first
    of ``known_SD`` count, of equally strong classes the first. Computed in fp32 whatever autocast says, votes in fp64.

    Args:
        asked_BD, known_SD: features, on one device, known ones at least one. labels_S: int64 (S,), likewise.
        k: more than S means all.
    """
    k, C = min(k, len(known_SD)), int(labels_S.max()) + 1
    with torch.autocast(known_SD.device.type, enabled=False):
        known_DS = F.normalize(known_SD.float(), dim=1).T
        asked_BD = F.normalize(asked_BD.float(), dim=1)
        parts = asked_BD.split(max(1, _CHUNK // max(len(known_SD), k * C)))
        chosen = [_votes(part @ known_DS, labels_S, k, temperature, C).argmax(dim=1) for part in parts]
    return torch.cat(chosen)


def _votes(similarity_BS: Tensor, labels_S: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Weights of the classes, fp64 (B, C), up to a factor a row."""
    nearest_BK, index_BK = similarity_BS.topk(min(k + 1, similarity_BS.shape[1]), dim=1)
    similarity_Bk, index_Bk = nearest_BK[:, :k], index_BK[:, :k]
    # Which of equally near ones `topk` takes is nobody's promise. One more tells; where there is none, all are taken.
    tied_B = (nearest_BK[:, k:] == nearest_BK[:, k - 1 : k]).any(dim=1)
    if bool(tied_B.any()):
        index_Bk[tied_B] = similarity_BS[tied_B].argsort(dim=1, descending=True, stable=True)[:, :k]
    # Relative to the nearest, which changes no winner: exp(1 / temperature) may be out of range.
    weight_Bk = ((similarity_Bk - similarity_Bk[:, :1]).double() / temperature).exp()
    return (weight_Bk[:, :, None] * F.one_hot(labels_S[index_Bk], classes)).sum(dim=1)
