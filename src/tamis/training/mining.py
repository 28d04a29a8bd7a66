"""Hard negatives: passages that a first stage ranks high for a query and that are not its answer.

What is not judged is not always irrelevant. Two guards keep likely answers out of the negatives: no passage that holds
one of the query's short answers, and none about as similar to the query as its weakest positive (the relative margin of
NV-Retriever, arXiv 2407.15831, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tamis.evaluation.collection import Collection, Query

Run = Mapping[str, Mapping[str, float]]
SHORT = 60  # characters: a longer answer is a text of its own, whose absence from a passage says nothing


def mine(
    collection: Collection,
    runs: Sequence[Run],
    *,
    negatives: int,
    top: int,
    rng: np.random.Generator,
    similarities: Run | None = None,
    guard: float | None = 0.95,
) -> dict[str, tuple[str, ...]]:
    """Negatives of each query.

    Args:
        collection: Queries, passages and what is relevant.
        runs: First stages' scores, best first.
        negatives: How many; fewer where the guards leave fewer.
        top: From how many of the best of each run they are drawn, without replacement and each alike.
        rng: Draws.
        similarities: A bi-encoder's similarities of each query to what the runs hold and to its positives.
        guard: See `tamis.training.recipe.DataOptions`.

    Returns:
        Passage ids by query id.
    """
    found = {}
    for name, query in collection.queries.items():
        judged = collection.qrels.get(name, {})
        pool = dict.fromkeys(passage for run in runs for passage in list(run.get(name, {}))[:top])
        limit = _limit(judged, (similarities or {}).get(name), guard)
        near = (similarities or {}).get(name, {})
        kept = [
            passage
            for passage in pool
            if judged.get(passage, 0) <= 0
            and near.get(passage, -1.0) <= limit
            and not holds_answer(query, collection.corpus[passage].text)
        ]
        drawn = rng.permutation(len(kept))[:negatives]
        found[name] = tuple(kept[i] for i in drawn)
    return found


def _limit(judged: Mapping[str, int], near: Mapping[str, float] | None, guard: float | None) -> float:
    if guard is None or not near:
        return float("inf")
    positives = [near[passage] for passage, grade in judged.items() if grade > 0 and passage in near]
    return guard * min(positives) if positives else float("inf")


def holds_answer(query: Query, text: str) -> bool:
    """Whether a passage holds one of the query's short answers, so that it may well answer it.

    Yes, no and single characters are everywhere, and say nothing.
    """
    text = text.casefold()
    for answer in query.answers or ():
        answer = answer.strip().casefold()
        if 1 < len(answer) <= SHORT and answer not in ("yes", "no", "maybe", "true", "false") and answer in text:
            return True
    return False
