"""`evaluate_rankrag`: how a RankRAG model ranks, and what it answers with and without its own ranking.

Without, it reads the first stage's best passages in their order; with, the best of its own order. The paper's
comparison (Yu et al. 2024, arXiv 2407.02485, section 5.3).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import InvalidInput
from tamis.evaluation.answers import exact, f1, holds
from tamis.evaluation.bootstrap import RESAMPLES, of_collections
from tamis.evaluation.calibration import PRECISION
from tamis.evaluation.ranking import FirstStage, evaluate
from tamis.evaluation.rankrag_report import Answered, AnswerResult, RankRAGReport, scores
from tamis.evaluation.results import CollectionResult
from tamis.inputs import Cut
from tamis.types import Hit, Ranking

if TYPE_CHECKING:
    from tamis.evaluation.collection import Collection, Query
    from tamis.rankrag.rag import RankRAG

TOP = 20
TOP_K = 5
WITHOUT, WITH = "without reranking", "with reranking"
COMPARED = ("EM", "F1", "accuracy")


def evaluate_rankrag(
    models: Mapping[str, RankRAG],
    collections: Sequence[Collection],
    *,
    first_stage: FirstStage = "bm25",
    top: int = TOP,
    top_k: int = TOP_K,
    min_score: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    precision: float = PRECISION,
    concurrency: int = 16,
    progress: bool = False,
    **answering: Any,
) -> RankRAGReport:
    """Ranks what a first stage finds and answers from the best; and answers without ranking, for comparison.

    Questions of which nothing is known about answers (`Query.answers` is None) are ranked for, and not answered.

    Args:
        models: RankRAG models, by the names that they have in the report.
        collections: What they are measured on; their names differ.
        first_stage: As in `evaluate`.
        top: How many of its passages are ranked.
        top_k: How many passages an answer is written from, at most.
        min_score: With reranking: passages below it are not read. See `RankRAG`.
        limit: As in `evaluate`, and so are the four that follow.
        seed: Of what is drawn.
        resamples: Draws of the bootstrap.
        precision: What the second suggested `min_score` is to reach.
        concurrency: How many questions are answered at a time; they share batches.
        progress: Show progress bars on a terminal's standard error.
        **answering: More options of `RankRAG.answer`, such as `task` and `max_new_tokens`.

    Raises:
        InvalidInput: An argument is wrong, or there is no model.
        MissingExtra: ir-measures is not installed.
    """
    if not models:
        raise InvalidInput("There is no model; pass what tamis.load_rankrag returns, by name.")
    Cut(top_n=top_k, min_score=min_score)
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidInput(f"concurrency is {concurrency!r}; pass an int of at least 1.")
    ranking = evaluate(
        {name: rag.reranker for name, rag in models.items()},
        collections,
        first_stage=first_stage,
        top=top,
        limit=limit,
        seed=seed,
        resamples=resamples,
        precision=precision,
        progress=progress,
    )
    options = {**answering, "top_k": top_k}
    results: list[AnswerResult] = []
    for each in ranking.collections:
        for name, rag in models.items():
            done = _Answering(rag, each, name, concurrency, progress)
            without = done.all(WITHOUT, lambda query, each=each: _as_found(each, query), options)
            rankings = each.models[name].rankings
            reranked = done.all(WITH, lambda query, it=rankings: it[query.id], {**options, "min_score": min_score})
            results.append(AnswerResult(each.collection, name, *without, *reranked, {}))
    return RankRAGReport(ranking, _compared(results, seed, resamples), top_k, min_score)


class _Answering:
    """Answers all questions of a collection; several at a time, so that they share batches."""

    def __init__(self, rag: RankRAG, result: CollectionResult, name: str, concurrency: int, progress: bool) -> None:
        self.rag = rag
        self.collection = result.collection
        self.name = name
        self.concurrency = concurrency
        self.progress = progress

    def all(self, how: str, ranked: Any, options: Mapping[str, Any]) -> tuple[dict[str, Answered], float]:
        """The answers by query, and the seconds that they took on the clock, ranking not included."""
        from tqdm.auto import tqdm

        asked = [query for query in self.collection.queries.values() if query.answers is not None]

        def answer(query: Query) -> Answered:
            found = self.rag.answer(query.text, ranked(query), **options)
            said = found.text if found.found else ""  # the model's own words for "not in the context" are no answer
            right = query.answers or ()
            contexts = tuple(str(hit.passage.id) for hit in found.contexts)
            return Answered(
                found.text, found.found, contexts, exact(said, right), f1(said, right), holds(said, right), right
            )

        label = f"{self.collection.name}, {self.name}, {how}"
        start = time.perf_counter()
        answers: dict[str, Answered] = {}
        off = None if self.progress else True
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="tamis-eval")
        try:
            with tqdm(total=len(asked), desc=label, unit="answer", disable=off) as bar:
                for query, answered in zip(asked, pool.map(answer, asked), strict=True):
                    answers[query.id] = answered
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
        return answers, time.perf_counter() - start


def _as_found(result: CollectionResult, query: Query) -> Ranking:
    """The first stage's order as a ranking, which `RankRAG.answer` reads as it is."""
    found = result.first.get(query.id, {}).items()
    corpus = result.collection.corpus
    hits = [Hit(i, 0.0, score, corpus[passage]) for i, (passage, score) in enumerate(found)]
    return Ranking(hits, "first stage")


def _compared(results: Sequence[AnswerResult], seed: int, resamples: int) -> tuple[AnswerResult, ...]:
    """The results with the intervals of what ranking gains."""
    from dataclasses import replace

    out = []
    for each in results:
        if not each.without:
            out.append(each)
            continue
        rows = [
            [scores(each.reranked[query])[name] - scores(before)[name] for name in COMPARED]
            for query, before in each.without.items()
        ]
        single, _ = of_collections([np.array(rows, np.float64)], seed, resamples)
        out.append(replace(each, differences=dict(zip(COMPARED, single[0], strict=True))))
    return tuple(out)
