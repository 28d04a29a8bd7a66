"""What an evaluation found, of one collection at a time. All values are frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.evaluation.bootstrap import Interval
from tamis.evaluation.calibration import Calibration
from tamis.evaluation.collection import Collection
from tamis.evaluation.measures import MEASURES
from tamis.evaluation.runs import Run
from tamis.types import Ranking

Means = Mapping[str, float]
Differences = Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model on one collection.

    Attributes:
        rankings: Of each query what the first stage found, in the model's order.
        by_query: Each measure of each answerable query, (n,), in the order of `CollectionResult.measured`.
        means: Their means; empty where no query is answerable.
        differences: Against the first stage; empty likewise.
        seconds: What ranking all queries took together, on the clock.
        calibration: Of the scores in this collection.
    """

    rankings: Mapping[str, Ranking] = field(repr=False)
    by_query: Mapping[str, NDArray[np.float64]] = field(repr=False)
    means: Means
    differences: Differences
    seconds: float
    calibration: Calibration = field(repr=False)

    @property
    def scored(self) -> int:
        """Pairs of query and passage."""
        return sum(len(ranking) for ranking in self.rankings.values())

    @property
    def truncated(self) -> int:
        """How many of them the model did not read to the end."""
        return sum(hit.truncated for ranking in self.rankings.values() for hit in ranking)

    @property
    def cached(self) -> int:
        """For how many of them no passage had to be read, since its vector was known from before."""
        return sum(ranking.usage.cached for ranking in self.rankings.values())

    @property
    def seconds_per_query(self) -> float:
        """Of many queries that share batches: one alone takes longer than its share."""
        return self.seconds / max(1, len(self.rankings))

    @property
    def passages_per_second(self) -> float:
        """Pairs, over the same time."""
        return self.scored / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the rankings."""
        return {
            "measures": dict(self.means),
            "differences": {name: one._asdict() for name, one in self.differences.items()},
            "seconds": self.seconds,
            "seconds_per_query": self.seconds_per_query,
            "passages_per_second": self.passages_per_second,
            "scored": self.scored,
            "truncated": self.truncated,
            "cached": self.cached,
            "calibration": self.calibration.to_json(),
        }


@dataclass(frozen=True, slots=True)
class CollectionResult:
    """All models on one collection.

    Attributes:
        collection: Its queries are those that were asked.
        measured: Ids of the answerable ones among them, which measures are about.
        first: What the first stage found.
        by_query: Its measures of each answerable query, (n,).
        means: Their means; empty where no query is answerable.
        found: The share of the relevant passages that the first stage found: no order of them has a higher recall.
        models: By name.
    """

    collection: Collection
    measured: tuple[str, ...] = field(repr=False)
    first: Run = field(repr=False)
    by_query: Mapping[str, NDArray[np.float64]] = field(repr=False)
    means: Means
    found: float | None
    models: Mapping[str, ModelResult]

    @property
    def unanswerable(self) -> int:
        """Queries without a relevant passage: no measure of an order is about them."""
        return len(self.collection.queries) - len(self.measured)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.collection.name,
            "split": self.collection.split,
            "passages": len(self.collection.corpus),
            "queries": len(self.collection.queries),
            "measured": len(self.measured),
            "unanswerable": self.unanswerable,
            "first_stage": {"measures": dict(self.means), "found": self.found},
            "models": {name: model.to_json() for name, model in self.models.items()},
        }


def by_model(models: Sequence[str], intervals: Sequence[Interval]) -> dict[str, Differences]:
    """Intervals in one row, of each model and measure, apart; nothing for each model where there are none."""
    size = len(MEASURES) if intervals else 0
    return {
        model: dict(zip(MEASURES, intervals[i * size : (i + 1) * size], strict=False)) for i, model in enumerate(models)
    }
