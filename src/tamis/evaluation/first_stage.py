"""First stages: what there is to rerank, found in the whole corpus by BM25 or by a bi-encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import InvalidInput
from tamis.evaluation.collection import Collection, Query
from tamis.evaluation.runs import Run
from tamis.scorers.lexical import K1, B
from tamis.scores import highest

if TYPE_CHECKING:
    from tamis.reranker import Reranker

TOP = 100


def bm25_run(
    collection: Collection, top: int = TOP, k1: float = K1, b: float = B, queries: Iterable[str] | None = None
) -> Run:
    """BM25 as bm25s computes it, method "lucene" (Kamphuis et al. 2020), without English stop words.

    A passage that shares no word with the query is not found. Where a query has candidates, all of them are returned
    and nothing else, those that share no word last; word frequencies are those of the whole corpus all the same.

    Args:
        collection: What is searched.
        top: Passages of each query, at most.
        k1: How soon a repeated word stops counting.
        b: How much long passages are held back.
        queries: Ids of the queries to run; all if None.
    """
    from bm25s import BM25, tokenize

    asked = _asked(collection, queries)
    ids = list(collection.corpus)
    place = {passage: index for index, passage in enumerate(ids)}
    plain = {"stopwords": "en", "return_ids": False, "show_progress": False}
    words = tokenize([passage.text for passage in collection.corpus.values()], **plain)
    index = BM25(k1=k1, b=b, method="lucene")
    known = {word for passage in words for word in passage}
    if known:
        index.index(words, show_progress=False)
    run: Run = {}
    for query, terms in zip(asked, tokenize([query.text for query in asked], **plain), strict=True):
        terms = [term for term in terms if term in known]
        scores = np.asarray(index.get_scores(terms), np.float64) if terms else np.zeros(len(ids))
        if query.candidates:
            pool = np.array([place[passage] for passage in query.candidates], np.intp)
        else:
            pool = np.flatnonzero(scores > 0)
        best = pool[highest(scores[pool], top)]
        run[query.id] = {ids[i]: float(scores[i]) for i in best}
    return run


def dense_run(
    collection: Collection,
    model: Reranker | str | Path,
    top: int = TOP,
    queries: Iterable[str] | None = None,
    *,
    progress: bool = False,
) -> Run:
    """What a bi-encoder finds; the corpus is encoded once, and so is each query.

    Args:
        collection: What is searched.
        model: A reranker; or the name of a checkpoint, which is loaded as a bi-encoder.
        top: Passages of each query, at most.
        queries: Ids of the queries to run; all if None.
        progress: Show a progress bar on a terminal's standard error.

    Raises:
        InvalidInput: The reranker reads query and passage together, and there are queries without candidates: each
            of them would cost a pass over the whole corpus.
    """
    from tqdm.auto import tqdm

    if isinstance(model, str | Path):
        from tamis.loading import load

        with load(model, mode="bi-encoder") as reranker:
            return dense_run(collection, reranker, top, queries, progress=progress)
    asked = _asked(collection, queries)
    run: Run = {query.id: {} for query in asked}
    pooled = [query for query in asked if query.candidates]
    requests = [(query.text, [collection.corpus[passage] for passage in query.candidates]) for query in pooled]
    for query, ranking in zip(pooled, model.rank_many(requests, top_n=top, progress=progress), strict=True):
        run[query.id] = {query.candidates[hit.index]: hit.logit for hit in ranking}
    open_ended = [query for query in asked if not query.candidates]
    if not open_ended:
        return run
    if model.mode != "bi-encoder":
        raise InvalidInput(
            f"{model.model} was loaded as a {model.mode}, which would have to read the whole corpus for each query; "
            "search with a bi-encoder, or with BM25."
        )
    ids = list(collection.corpus)
    texts = [query.text for query in open_ended]
    passages = [passage.text for passage in collection.corpus.values()]
    with tqdm(total=len(passages), desc="searching", unit="passage", disable=None if progress else True) as bar:
        steps = model._scorer.search(texts, passages, top, bar.update)  # type: ignore[attr-defined]
        found = model.run("search", len(passages), steps)
    for query, (values, places) in zip(open_ended, found, strict=True):
        run[query.id] = {ids[place]: float(value) for place, value in zip(places, values, strict=True)}
    return run


def _asked(collection: Collection, queries: Iterable[str] | None) -> list[Query]:
    known: Mapping[str, Query] = collection.queries
    if queries is None:
        return list(known.values())
    wanted = list(queries)
    missing = [query for query in wanted if query not in known]
    if missing:
        raise InvalidInput(f"{collection.name} has no query {missing[0]!r} in its split {collection.split!r}.")
    return [known[query] for query in wanted]
