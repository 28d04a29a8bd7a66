"""How sure a difference is: the paired bootstrap (Efron 1979; for retrieval Sakai 2006).

The queries of a collection are drawn again, as many as there are and with replacement, and the mean difference is
taken of each such draw; its 2.5% and 97.5% quantiles are the interval. Pairs stay together, since a query that is hard
for one system is hard for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
_BLOCK = 500  # draws at a time, so that they need little memory


class Interval(NamedTuple):
    """A mean difference, and the interval that holds it."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> str:
        """What is sure of it: "+" or "-" if 0 is outside of the interval, else "".

        >>> Interval(0.1, 0.05, 0.2).sign, Interval(0.1, -0.05, 0.2).sign, Interval(-0.1, -0.2, -0.05).sign
        ('+', '', '-')
        """
        return "+" if self.low > 0 else "-" if self.high < 0 else ""


def resampled(
    differences: NDArray[np.float64], rng: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Means of draws from n queries.

    Args:
        differences: Of each query in m measures, (n, m); n at least 1.
        rng: Draws; all measures of a draw are of the same queries.
        resamples: How many draws.

    Returns:
        Shape (resamples, m).
    """
    count = len(differences)
    means = np.empty((resamples, differences.shape[1]))
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        times = rng.multinomial(count, np.full(count, 1 / count), size=size)  # how often each query was drawn
        means[start : start + size] = times @ differences / count
    return means


def intervals(means: NDArray[np.float64], draws: NDArray[np.float64]) -> list[Interval]:
    """One interval for each of m measures, from the means (m,) and their draws (resamples, m)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b), float(c)) for a, b, c in zip(means, low, high, strict=True)]


def of_collections(
    differences: Sequence[NDArray[np.float64]], seed: int, resamples: int = RESAMPLES
) -> tuple[list[list[Interval]], list[Interval]]:
    """Intervals of each of several collections, and of the mean over them, in which each counts alike.

    Args:
        differences: Of each collection (n, m), the same m measures; n at least 1. Collections are drawn apart.
        seed: Of the draws; equal seeds give equal intervals.
        resamples: How many draws.
    """
    draws = [resampled(each, np.random.default_rng([seed, i]), resamples) for i, each in enumerate(differences)]
    means = [each.mean(0) for each in differences]
    single = [intervals(mean, drawn) for mean, drawn in zip(means, draws, strict=True)]
    return single, intervals(np.mean(means, axis=0), np.mean(draws, axis=0)) if draws else []
