"""How good an order is: ir-measures, by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tamis.extras import need

MEASURES: Mapping[str, str] = {
    "Recall@5": "R@5",
    "Recall@10": "R@10",
    "Recall@20": "R@20",
    "nDCG@10": "nDCG@10",
    "MRR@10": "RR@10",
    "MAP": "AP",
}
"""Names in reports, and what ir-measures calls them."""

MAIN = "nDCG@10"


def measured(
    qrels: Mapping[str, Mapping[str, int]], ranked: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[np.float64]]:
    """Each measure of each query, (n,), in the order of the n queries in `qrels`.

    What is not in a ranking counts as not found. The order alone counts: trec_eval, which ir-measures asks, reads
    scores as 32-bit numbers and orders equal ones by id, so that it is handed the places instead.

    Args:
        qrels: Relevance of passages, by query; above 0 is relevant. Every query has a relevant one.
        ranked: Passage ids, best first, by query.

    >>> found = measured({"q": {"a": 1, "b": 1}}, {"q": ["x", "a"]})
    >>> round(float(found["nDCG@10"][0]), 4), float(found["MRR@10"][0]), float(found["Recall@5"][0])
    (0.3869, 0.5, 0.5)
    """
    ir_measures = need("ir_measures", "eval", "An evaluation")
    known = {ir_measures.parse_measure(name): title for title, name in MEASURES.items()}
    place = {query: i for i, query in enumerate(qrels)}
    values = {title: np.zeros(len(place)) for title in MEASURES}
    run = {
        query: {passage: float(len(passages) - i) for i, passage in enumerate(passages)}
        for query, passages in ranked.items()
        if query in place and passages
    }
    if run:
        for one in ir_measures.iter_calc(list(known), {query: dict(qrels[query]) for query in qrels}, run):
            values[known[one.measure]][place[one.query_id]] = one.value
    return values
