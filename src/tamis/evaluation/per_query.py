"""A line for each query, for error analysis: where its relevant passages stood before and after, and what is ahead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.evaluation.measures import MEASURES
from tamis.evaluation.results import CollectionResult

if TYPE_CHECKING:
    from tamis.evaluation.report import Report

AHEAD = 3  # passages that are shown of those that took a relevant one's place
TEXT = 300  # characters that are shown of each


def write_rankings(report: Report, path: Path) -> None:
    """Writes the lines of a report."""
    with path.open("w", encoding="utf-8") as file:
        for result in report.collections:
            for model in report.models:
                for line in ranking_lines(result, model):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def ranking_lines(result: CollectionResult, model: str) -> Iterator[dict[str, Any]]:
    """A line for each query, in the collection's order.

    `relevant` has every relevant passage with its rank, from 1, and score in the first stage (`before`) and in the
    model's order (`after`); null where the first stage did not find it. `ahead` has the best of those that are not
    relevant and stand above the first relevant one in the model's order; above everything, where nothing is relevant.
    """
    collection, done = result.collection, result.models[model]
    row = {query: i for i, query in enumerate(result.measured)}
    for key, query in collection.queries.items():
        before = {passage: (i, score) for i, (passage, score) in enumerate(result.first.get(key, {}).items(), 1)}
        after = {str(hit.passage.id): (i, hit.score) for i, hit in enumerate(done.rankings[key], 1)}
        relevant = [passage for passage, grade in collection.qrels[key].items() if grade > 0]
        first = min((after[passage][0] for passage in relevant if passage in after), default=len(after) + 1)
        ahead = [passage for passage, (rank, _) in after.items() if rank < first][:AHEAD]
        yield {
            "collection": collection.name,
            "model": model,
            "query_id": key,
            "query": query.text,
            "measures": {
                name: {"before": float(result.by_query[name][row[key]]), "after": float(done.by_query[name][row[key]])}
                for name in (MEASURES if key in row else ())
            },
            "relevant": [
                {
                    "id": passage,
                    "grade": collection.qrels[key][passage],
                    "before": _place(before.get(passage)),
                    "after": _place(after.get(passage)),
                }
                for passage in relevant
            ],
            "ahead": [
                {
                    "id": passage,
                    "before": _place(before.get(passage)),
                    "after": _place(after.get(passage)),
                    "text": collection.corpus[passage].text[:TEXT],
                }
                for passage in ahead
            ],
        }


def _place(found: tuple[int, float] | None) -> dict[str, float] | None:
    return None if found is None else {"rank": found[0], "score": found[1]}
