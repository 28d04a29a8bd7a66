"""From a model's raw value to a score in [0, 1]. Each is monotone, so the order never changes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def sigmoid(logit: float) -> float:
    """The logistic function, without overflow at either end.

    >>> sigmoid(0.0), sigmoid(-800.0), sigmoid(800.0)
    (0.5, 0.0, 1.0)
    """
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    e = math.exp(logit)  # 0.0 far below
    return e / (1.0 + e)


def logit(probability: float) -> float:
    """The sigmoid's inverse. 0 and 1, which have none, come just beyond what every other float64 gives.

    >>> logit(0.5), round(sigmoid(logit(0.9)), 15), sigmoid(logit(0.0)), sigmoid(logit(1.0))
    (0.0, 0.9, 0.0, 1.0)
    >>> -math.inf < logit(0.0) < logit(5e-324) < logit(1 - 2**-53) < logit(1.0) < math.inf
    True
    """
    if probability <= 0.0:
        return -746.0
    if probability >= 1.0:
        return 38.0
    return math.log(probability) - math.log1p(-probability)


def from_cosine(cosine: float) -> float:
    """`(1 + cos) / 2`, held inside [0, 1] against rounding.

    >>> from_cosine(1.0000001), from_cosine(-1.0), from_cosine(0.5)
    (1.0, 0.0, 0.75)
    """
    return min(1.0, max(0.0, (1.0 + cosine) / 2.0))


def from_dot(product: float) -> float:
    """`(1 + s / (1 + |s|)) / 2`: the softsign of a dot product, which has no bound, held inside [0, 1].

    A sigmoid would be 1.0 at the magnitudes that dot products have (Dragon's are in the hundreds), and tie them.

    >>> from_dot(0.0), from_dot(3.0), from_dot(-3.0), from_dot(300.0) < from_dot(300.5) < 1.0
    (0.5, 0.875, 0.125, True)
    """
    return (1.0 + product / (1.0 + abs(product))) / 2.0


def from_bm25(value: float) -> float:
    """`s / (1 + s)`, for a BM25 sum `s >= 0`.

    >>> from_bm25(0.0), from_bm25(3.0)
    (0.0, 0.75)
    """
    return value / (1.0 + value)


def order(logits: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices from the highest logit to the lowest; equal ones keep their order.

    >>> order(np.array([1.0, 3.0, 3.0, 2.0])).tolist()
    [1, 2, 3, 0]
    """
    return np.argsort(-logits, kind="stable")


def highest(logits: NDArray[np.float64], top: int) -> NDArray[np.intp]:
    """Indices of the `top` highest logits, as `order` has them, without ordering the rest.

    >>> highest(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3).tolist()
    [1, 3, 2]
    """
    if top >= len(logits):
        return order(logits)
    least = np.partition(logits, len(logits) - top)[len(logits) - top]
    among = np.flatnonzero(logits >= least)
    best: NDArray[np.intp] = among[order(logits[among])[:top]]
    return best
