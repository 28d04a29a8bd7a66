"""What a score means: how many passages of that score are relevant, and from which score on to keep them.

Pairs of query and passage, those that were scored. What is not judged counts as not relevant.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
PRECISION = 0.9


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose scores lie in [low, high), the last one with its end.

    Attributes:
        low: Where it begins.
        high: Where it ends.
        count: Pairs.
        score: Their mean score; 0 if there is none.
        relevant: The share that is relevant; 0 if there is none.
    """

    low: float
    high: float
    count: int
    score: float
    relevant: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """A `min_score`, and what keeping all pairs with at least that score comes to.

    Attributes:
        min_score: It lies half-way between the scores of the last pair that is kept and the first that is not.
        precision: The share of what is kept that is relevant.
        recall: The share of what is relevant that is kept.
        f1: Their harmonic mean.
    """

    min_score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """See `calibrate`.

    Attributes:
        pairs: How many were scored.
        relevant: How many of them are relevant.
        bins: Of equal width, over [0, 1].
        error: Expected calibration error: the mean distance of score and share of relevant ones over the bins, each
            weighted with its pairs (Naeini et al. 2015). 0 is a score that is a probability.
        auc: How likely a relevant pair is scored above one that is not, ties counting half; None where either is
            missing.
        best: The threshold of the highest F1; None if nothing is relevant.
        precise: The one with the highest recall among those whose precision is at least `precision`, if any is.
        precision: What was asked for.
    """

    pairs: int
    relevant: int
    bins: tuple[Bin, ...]
    error: float
    auc: float | None
    best: Threshold | None
    precise: Threshold | None
    precision: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def calibrate(scores: NDArray[np.float64], relevant: NDArray[np.bool_], *, precision: float = PRECISION) -> Calibration:
    """Scores of n pairs, in [0, 1], against whether they are relevant; both (n,).

    >>> found = calibrate(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False]))
    >>> found.auc, round(found.error, 3), round(found.best.min_score, 2), found.best.f1
    (1.0, 0.175, 0.55, 1.0)
    """
    edges = np.linspace(0, 1, BINS + 1)
    which = np.minimum(np.searchsorted(edges, scores, side="right") - 1, BINS - 1)
    bins = []
    for i in range(BINS):
        inside = which == i
        count = int(inside.sum())
        mean, share = (float(scores[inside].mean()), float(relevant[inside].mean())) if count else (0.0, 0.0)
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), count, mean, share))
    error = sum(one.count * abs(one.score - one.relevant) for one in bins) / max(1, len(scores))
    best, precise = _thresholds(scores, relevant, precision)
    total = int(relevant.sum())
    return Calibration(len(scores), total, tuple(bins), error, _auc(scores, relevant), best, precise, precision)


def _thresholds(
    scores: NDArray[np.float64], relevant: NDArray[np.bool_], precision: float
) -> tuple[Threshold | None, Threshold | None]:
    """The best and the precise one; of equally good ones the highest."""
    total = int(relevant.sum())
    if not total:
        return None, None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # pairs of equal scores are kept together
    kept, hits = ends + 1, np.cumsum(relevant[order])[ends]
    last = ranked[ends]
    following = np.append(ranked[kept[:-1]], 0.0)
    between = (last + following) / 2
    least = np.where(between > following, between, last)  # neighbouring floats have nothing between
    precisions, recalls, f1 = hits / kept, hits / total, 2 * hits / (kept + total)

    def one(i: np.intp) -> Threshold:
        return Threshold(float(least[i]), float(precisions[i]), float(recalls[i]), float(f1[i]))

    enough = precisions >= precision
    precise = one(np.argmax(np.where(enough, recalls, -1.0))) if enough.any() else None
    return one(np.argmax(f1)), precise


def _auc(scores: NDArray[np.float64], relevant: NDArray[np.bool_]) -> float | None:
    """The Mann-Whitney statistic over the number of pairs of pairs."""
    positives = int(relevant.sum())
    negatives = len(scores) - positives
    if not positives or not negatives:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # from 1; equal scores share their mean rank
    above = float(ranks[relevant].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)
