"""Models against one of them, query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.evaluation.bootstrap import of_collections
from tamis.evaluation.measures import MEASURES
from tamis.evaluation.results import CollectionResult, Differences, by_model


@dataclass(frozen=True, slots=True)
class Comparison:
    """What other models gain over one.

    Attributes:
        other: The name of that one.
        collections: By the name of each collection with an answerable query, and by model: its differences.
        mean: By model: their mean over these collections, each counting alike.
    """

    other: str
    collections: Mapping[str, Mapping[str, Differences]]
    mean: Mapping[str, Differences]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.other,
            "collections": {name: _plain(found) for name, found in self.collections.items()},
            "mean": _plain(self.mean),
        }


def compare(
    results: Sequence[CollectionResult], models: Sequence[str], other: str, seed: int, resamples: int
) -> Comparison:
    """Every model against `other`, by the paired bootstrap.

    Args:
        results: Of all of `models`.
        models: Names.
        other: One of them.
        seed: Of the draws.
        resamples: How many.
    """
    counted = [each for each in results if each.measured]
    names = [name for name in models if name != other]
    gains = [
        np.stack(
            [each.models[name].by_query[m] - each.models[other].by_query[m] for name in names for m in MEASURES], axis=1
        )
        for each in (counted if names else ())
    ]
    single, mean = of_collections(gains, seed, resamples)
    found = {each.collection.name: by_model(names, one) for each, one in zip(counted, single, strict=False)}
    return Comparison(other, found, by_model(names, mean))


def _plain(found: Mapping[str, Differences]) -> dict[str, dict[str, dict[str, float]]]:
    return {model: {name: one._asdict() for name, one in gains.items()} for model, gains in found.items()}
