"""`evaluate`: a first stage, then each model over what it found, and what became of the order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidInput
from tamis.evaluation.bootstrap import RESAMPLES, of_collections
from tamis.evaluation.calibration import PRECISION, calibrate
from tamis.evaluation.collection import Collection
from tamis.evaluation.comparison import compare
from tamis.evaluation.first_stage import TOP, bm25_run, dense_run
from tamis.evaluation.measures import MEASURES, measured
from tamis.evaluation.report import Report
from tamis.evaluation.results import CollectionResult, ModelResult, by_model
from tamis.evaluation.runs import Run
from tamis.extras import need
from tamis.types import Passage, Ranking

if TYPE_CHECKING:
    from tamis.reranker import Reranker

FirstStage: TypeAlias = "Literal['bm25'] | Reranker | Mapping[str, Run]"


def evaluate(
    models: Mapping[str, Reranker],
    collections: Sequence[Collection],
    *,
    first_stage: FirstStage = "bm25",
    top: int = TOP,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    precision: float = PRECISION,
    against: str | None = None,
    progress: bool = False,
) -> Report:
    """Reranks what a first stage finds with each model, and measures the orders.

    Args:
        models: Rerankers, by the names that they have in the report. None is fine: it measures the first stage.
        collections: What they are measured on; their names differ.
        first_stage: "bm25"; a reranker in bi-encoder mode, which searches the whole corpus; or finished runs, by the
            name of the collection. A query that a run lacks has found nothing.
        top: How many of its passages are reranked. What is not among them counts as not found.
        limit: Queries of each collection at most, drawn with the seed.
        seed: Of what is drawn; equal seeds give equal intervals.
        resamples: Draws of the bootstrap.
        precision: What the second suggested `min_score` is to reach.
        against: A model that the others are compared with too, besides the first stage: `Report.comparison`.
        progress: Show progress bars on a terminal's standard error.

    Raises:
        InvalidInput: An argument is wrong, a collection is there twice, or has no run.
        MissingExtra: ir-measures is not installed.
    """
    need("ir_measures", "eval", "An evaluation")  # before hours of work, not after
    _check(top, resamples, precision)
    if against is not None and against not in models:
        raise InvalidInput(f"against is {against!r}, which is none of the models; there are {', '.join(models)}.")
    collections = [collection.limited(limit, seed) for collection in checked(collections)]
    name, runs = first_runs(first_stage, collections, top, progress)
    begun = [_Begun.of(collection, runs[collection.name]) for collection in collections]
    for each in begun:
        for model, reranker in models.items():
            each.add(model, reranker, precision, progress)
    report = _report(begun, list(models), name, top, seed, resamples, precision)
    if against is None:
        return report
    return replace(report, comparison=compare(report.collections, report.models, against, seed, resamples))


def checked(collections: Sequence[Collection]) -> Sequence[Collection]:
    """The collections, if there are some and no two have one name.

    Raises:
        InvalidInput: There are none, or two.
    """
    names = [collection.name for collection in collections]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        what = f"Two collections are called {twice[0]!r}; rename one." if twice else "There is no collection."
        raise InvalidInput(f"{what} Pass what read_collection returns, one for each folder.")
    return collections


def first_runs(
    first_stage: FirstStage, collections: Sequence[Collection], top: int, progress: bool = False
) -> tuple[str, dict[str, Run]]:
    """The name of a first stage, and what it finds in each collection; `top` passages of each query at most."""
    if first_stage == "bm25":
        return "bm25", {each.name: bm25_run(each, top) for each in collections}
    if isinstance(first_stage, Mapping):
        missing = [each.name for each in collections if each.name not in first_stage]
        if missing:
            raise InvalidInput(
                f"There is no run of {missing[0]}; the runs are of {', '.join(first_stage) or 'nothing'}."
            )
        return "run", {each.name: _cut(first_stage[each.name], each, top) for each in collections}
    if isinstance(first_stage, str):
        raise InvalidInput(f'first_stage={first_stage!r}; pass "bm25", runs, or a reranker in bi-encoder mode.')
    runs = {each.name: dense_run(each, first_stage, top, progress=progress) for each in collections}
    return first_stage.model, runs


def _cut(run: Run, collection: Collection, top: int) -> Run:
    return {query: dict(list(run.get(query, {}).items())[:top]) for query in collection.queries}


def _check(top: int, resamples: int, precision: float) -> None:
    for name, value in (("top", top), ("resamples", resamples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name} is {value!r}; pass an int of at least 1.")
    if not 0 < precision <= 1:
        raise InvalidInput(f"precision is {precision!r}; pass a share, above 0 and at most 1.")


@dataclass(slots=True)
class _Begun:
    """A collection while models are run on it: results without intervals yet."""

    result: CollectionResult
    models: dict[str, ModelResult]

    @classmethod
    def of(cls, collection: Collection, run: Run) -> _Begun:
        """What the first stage comes to."""
        answerable = tuple(collection.answerable())
        judged = {query: collection.qrels[query] for query in answerable}
        by_query = measured(judged, {query: list(found) for query, found in run.items()})
        return cls(
            CollectionResult(collection, answerable, run, by_query, _means(by_query), _found(judged, run), {}), {}
        )

    def add(self, name: str, reranker: Reranker, precision: float, progress: bool) -> None:
        """Runs a model."""
        result = self.result
        collection = result.collection
        rankings, seconds = timed(name, reranker, collection, result.first, progress)
        judged = {query: collection.qrels[query] for query in result.measured}
        ranked = {query: [str(hit.passage.id) for hit in ranking] for query, ranking in rankings.items()}
        by_query = measured(judged, ranked)
        calibration = calibrate(*pairs(collection, rankings), precision=precision)
        self.models[name] = ModelResult(rankings, by_query, _means(by_query), {}, seconds, calibration)

    def differences(self) -> NDArray[np.float64]:
        """Of each answerable query what each model gains in each measure, (n, models * measures)."""
        rows = [
            model.by_query[name] - self.result.by_query[name] for model in self.models.values() for name in MEASURES
        ]
        return np.stack(rows, axis=1) if rows else np.zeros((len(self.result.measured), 0))


def timed(
    name: str, reranker: Reranker, collection: Collection, run: Run, progress: bool
) -> tuple[dict[str, Ranking], float]:
    """The rankings of all queries for which something was found, and the seconds that they took."""
    from tqdm.auto import tqdm

    ids = [query for query in collection.queries if run.get(query)]
    requests = [
        (collection.queries[query].text, [_identified(collection, passage) for passage in run[query]]) for query in ids
    ]
    reranker.rank("a first query", ["takes longer than those that follow"])
    label = f"{collection.name}, {name}"
    start = time.perf_counter()
    rankings: dict[str, Ranking] = {query: Ranking((), reranker.model) for query in collection.queries}
    with tqdm(total=len(ids), desc=label, unit="query", disable=None if progress else True) as bar:
        for query, ranking in zip(ids, reranker.rank_many(requests), strict=True):
            rankings[query] = ranking
            bar.update()
    return rankings, time.perf_counter() - start


def _identified(collection: Collection, passage: str) -> Passage:
    """The passage under the key that the collection has it by, whatever its maker gave it."""
    found = collection.corpus[passage]
    return found if found.id == passage else replace(found, id=passage)


def pairs(collection: Collection, rankings: Mapping[str, Ranking]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The score of everything that was scored, and whether it is relevant; both (n,)."""
    scores, relevant = [], []
    for query, ranking in rankings.items():
        judged = collection.qrels[query]
        for hit in ranking:
            scores.append(hit.score)
            relevant.append(judged.get(str(hit.passage.id), 0) > 0)
    return np.array(scores, np.float64), np.array(relevant, np.bool_)


def _means(by_query: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in by_query.items() if len(values)}


def _found(judged: Mapping[str, Mapping[str, int]], run: Run) -> float | None:
    """Mean recall of all that was found."""
    shares = []
    for query, grades in judged.items():
        relevant = [passage for passage, grade in grades.items() if grade > 0]
        shares.append(sum(passage in run.get(query, {}) for passage in relevant) / len(relevant))
    return float(np.mean(shares)) if shares else None


def _report(
    begun: Sequence[_Begun], models: list[str], name: str, top: int, seed: int, resamples: int, precision: float
) -> Report:
    counted = [each for each in begun if each.result.measured]  # the others have nothing to draw from
    single, mean = of_collections([each.differences() for each in counted], seed, resamples)
    found = dict(zip([each.result.collection.name for each in counted], single, strict=True))
    results = []
    for each in begun:
        named = by_model(models, found.get(each.result.collection.name, []))
        done = {model: replace(each.models[model], differences=named[model]) for model in models}
        results.append(replace(each.result, models=done))
    scores = {model: [pairs(each.collection, each.models[model].rankings) for each in results] for model in models}
    calibrations = {
        model: calibrate(*map(np.concatenate, zip(*parts, strict=True)), precision=precision)
        for model, parts in scores.items()
    }
    return Report(tuple(results), by_model(models, mean), calibrations, name, top, seed, resamples)
