"""The policy over a scorer: what counts as input, how hits are ordered and cut, and who waits for whom."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, Self, TypeVar

import numpy as np

from tamis.budget import DEFAULT_ENCODING, TokenCounter, Tokenizer, fit, token_counter
from tamis.calls import Call, Calls
from tamis.errors import InvalidInput, InvalidScore
from tamis.inputs import Cut, check_timeout, checked
from tamis.scorers.base import Scorer, Scores
from tamis.scores import order
from tamis.steps import Party, Steps, late, patience
from tamis.types import Hit, Passage, Ranking, Usage

T = TypeVar("T")

IN_FLIGHT = 32  # requests that rank_many keeps under way, so that small ones share batches


class Reranker:
    """Ranks passages for a query. Made by `tamis.load`; any number of threads and event loops may share one.

    Every method takes the query as text and the passages as a sequence of `str` or `Passage`, and raises
    `InvalidInput` for anything else, `InvalidScore` where the model returns NaN, and `Closed` after `close`. No
    passage is ever dropped silently: an empty one is scored, and indices are those of the caller's list.

    Args:
        scorer: The model, in one of the modes.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._calls = Calls(scorer.model, scorer.mode)

    @property
    def model(self) -> str:
        """The hub id, folder or name that was loaded."""
        return self._scorer.model

    @property
    def mode(self) -> str:
        """The mode that it was loaded in."""
        return self._scorer.mode

    def rank(
        self,
        query: str,
        passages: Sequence[str | Passage],
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        max_tokens: int | None = None,
        tokenizer: Tokenizer = None,
        timeout: float | None = None,
    ) -> Ranking:
        """The passages, best first.

        Args:
            query: The question.
            passages: Any number of passages; none gives an empty ranking.
            top_n: Keep this many at most, at least 1.
            min_score: Keep only hits with at least this score, in [0, 1].
            max_tokens: Keep the longest run of best hits whose texts have at most this many tokens.
            tokenizer: What `max_tokens` counts with; see `tamis.budget.token_counter`. By default the model's own
                tokenizer, or tiktoken's cl100k_base in modes without one.
            timeout: Seconds after which `DeadlineExceeded` is raised and what has not run is withdrawn.
        """
        return self._calls.run(self._ranking(query, passages, Cut(top_n, min_score, max_tokens, tokenizer)), timeout)

    async def arank(
        self,
        query: str,
        passages: Sequence[str | Passage],
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        max_tokens: int | None = None,
        tokenizer: Tokenizer = None,
        timeout: float | None = None,
    ) -> Ranking:
        """As `rank`, from any event loop, without blocking it. Cancelling withdraws what has not run yet."""
        return await self._calls.arun(
            self._ranking(query, passages, Cut(top_n, min_score, max_tokens, tokenizer)), timeout
        )

    def rank_many(
        self,
        requests: Iterable[tuple[str, Sequence[str | Passage]]],
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        max_tokens: int | None = None,
        tokenizer: Tokenizer = None,
        timeout: float | None = None,
        progress: bool = False,
    ) -> Iterator[Ranking]:
        """One ranking for each (query, passages), in their order, as they are done.

        Requests are read ahead, so that small ones share batches; a generator of requests is never exhausted early.
        They wait for room in the queue while others of theirs are under way; only the first of them can be refused.

        Args:
            requests: Pairs of a query and its passages.
            top_n: As in `rank`.
            min_score: As in `rank`.
            max_tokens: As in `rank`.
            tokenizer: As in `rank`.
            timeout: As in `rank`, for each request from the moment that it is read.
            progress: Show a progress bar on a terminal's standard error.
        """
        from tqdm.auto import tqdm

        check_timeout(timeout)
        cut = Cut(top_n, min_score, max_tokens, tokenizer)
        self.check_cut(cut)  # what is wrong with it is wrong with every request
        total = len(requests) if isinstance(requests, Sequence) else None
        bar = tqdm(total=total, desc="ranking", unit="query", disable=None if progress else True)
        running: deque[tuple[Future[Ranking], float]] = deque()
        together = Party()

        def finished() -> Ranking:
            future, start = running.popleft()
            ranking = _in_time(future, timeout, start)
            bar.update()
            return ranking

        try:
            for index, request in enumerate(requests):
                try:
                    call = self._ranking(*_pair(request), cut)
                except InvalidInput as error:
                    raise InvalidInput(f"Request {index}: {error}") from error
                with patience(bool(running), together):  # none is refused because of the others
                    running.append((self._calls.start(call, timeout), time.monotonic()))
                if len(running) >= IN_FLIGHT:
                    yield finished()
            while running:
                yield finished()
        finally:
            for future, _ in running:
                future.cancel()
            bar.close()

    def logits(self, query: str, passages: Sequence[str | Passage], *, timeout: float | None = None) -> list[float]:
        """The model's raw values, in the order of the passages."""
        return self._calls.run(self._logits(query, passages), timeout)

    def score(self, query: str, passages: Sequence[str | Passage], *, timeout: float | None = None) -> list[float]:
        """Scores in [0, 1], in the order of the passages."""
        return self._calls.run(self._scores(query, passages), timeout)

    async def ascore(
        self, query: str, passages: Sequence[str | Passage], *, timeout: float | None = None
    ) -> list[float]:
        """As `score`, from any event loop, without blocking it."""
        return await self._calls.arun(self._scores(query, passages), timeout)

    def signature(self, query: str) -> str | None:
        """A digest of all that scores for a query depend on besides the passages: equal ones rank alike.

        None in modes that do not say; so far it is "rankrag" that does.
        """
        make: Callable[[str], str] | None = getattr(self._scorer, "signature", None)
        return None if make is None else make(query)

    def stats(self) -> Mapping[str, Any]:
        """Numbers to graph: this reranker's requests and latencies in seconds, and its engine's counters."""
        return {"model": self.model, "mode": self.mode, **self._calls.summary(), **self._scorer.stats()}

    def close(self) -> None:
        """Ends this reranker: whoever waits on it gets `Closed`, and so does every later call.

        The engine lives on while another reranker shares it.
        """
        if self._calls.close():
            self._scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: a framework that deep-copies its configuration shares the loaded model."""
        return self

    def __repr__(self) -> str:
        return f"Reranker(model={self.model!r}, mode={self.mode!r})"

    # -- the steps of each call: input is checked and copied at once, in the caller's thread ------------------------

    def _ranking(self, query: str, passages: Sequence[str | Passage], cut: Cut) -> Call[Ranking]:
        given = checked(query, passages)
        self.check_cut(cut)

        def steps() -> Steps[Ranking]:
            scores = yield from self._finite_scores(query, given)
            return self._cut(given, scores, cut)

        return Call("rank", len(given), steps())

    def _logits(self, query: str, passages: Sequence[str | Passage]) -> Call[list[float]]:
        given = checked(query, passages)

        def steps() -> Steps[list[float]]:
            scores = yield from self._finite_scores(query, given)
            return [float(logit) for logit in scores.logits]

        return Call("logits", len(given), steps())

    def _scores(self, query: str, passages: Sequence[str | Passage]) -> Call[list[float]]:
        given = checked(query, passages)

        def steps() -> Steps[list[float]]:
            scores = yield from self._finite_scores(query, given)
            return [float(self._scorer.to_score(float(logit) / scores.unit)) for logit in scores.logits]

        return Call("score", len(given), steps())

    def _finite_scores(self, query: str, given: list[Passage]) -> Steps[Scores]:
        return self._finite(given, lambda texts: self._scorer.steps(query, texts))

    def _finite(self, given: list[Passage], steps: Callable[[list[str]], Steps[Scores]]) -> Steps[Scores]:
        if not given:
            return Scores(np.zeros(0), np.zeros(0, dtype=np.bool_))
        scores = yield from steps([passage.text for passage in given])
        bad = np.flatnonzero(~np.isfinite(scores.logits))
        if bad.size:
            raise InvalidScore(
                f"{self.model} returned {scores.logits[bad[0]]} for passage {bad[0]} ({bad.size} of {len(given)} "
                "passages are affected), which cannot be ranked. In float16 that is usually an overflow: load it with "
                'dtype="float32" or "bfloat16"; otherwise the checkpoint is damaged.'
            )
        return scores

    def _cut(self, given: list[Passage], scores: Scores, cut: Cut) -> Ranking:
        def score(index: np.intp) -> float:
            return float(self._scorer.to_score(float(scores.logits[index]) / scores.unit))

        ranked = order(scores.logits)
        good = len(ranked)
        if cut.min_score is not None:  # scores fall along the ranking, so the cut is a place in it
            good = bisect_right(ranked, -cut.min_score, key=lambda index: -score(index))
        best = ranked[: good if cut.top_n is None else min(good, cut.top_n)]
        kept = len(best)
        if cut.max_tokens is not None:
            kept = fit((given[i].text for i in best), cut.max_tokens, self._counter(cut.tokenizer))
        windows = scores.windows or [None] * len(given)
        hits = [
            Hit(int(i), score(i), float(scores.logits[i]), given[i], bool(scores.truncated[i]), windows[i])
            for i in best[:kept]
        ]
        return Ranking(hits, self.model, Usage(scores.tokens, scores.cached, len(ranked) - good, len(best) - kept))

    def _counter(self, tokenizer: Tokenizer) -> TokenCounter:
        if tokenizer is not None:
            return token_counter(tokenizer)
        return self._scorer.count_tokens or token_counter(DEFAULT_ENCODING)

    # -- for what is built over a reranker: `tamis.rankrag` -----------------------------------------------------------

    def scored(self, given: list[Passage], steps: Callable[[list[str]], Steps[Scores]]) -> Steps[Scores]:
        """The scores that some steps over the scorer give; finite, or `InvalidScore`."""
        return self._finite(given, steps)

    def check_cut(self, cut: Cut) -> None:
        """Raises what counting tokens for a cut would raise, before anything is scored for it.

        Raises:
            MissingExtra: It needs tiktoken, which is not installed.
            ModelNotFound: tiktoken has no such encoding, or cannot read its file.
            InvalidInput: `tokenizer` is nothing that counts.
        """
        if cut.max_tokens is not None:
            self._counter(cut.tokenizer)

    def ranked(self, given: list[Passage], scores: Scores, cut: Cut) -> Ranking:
        """A ranking from scores."""
        return self._cut(given, scores, cut)

    def run(self, operation: str, passages: int, steps: Steps[T], timeout: float | None = None) -> T:
        """Drives steps in the caller's thread, counted and ended like this reranker's own calls."""
        return self._calls.run(Call(operation, passages, steps), timeout)

    def start(self, operation: str, passages: int, steps: Steps[T], timeout: float | None = None) -> Future[T]:
        """Drives steps on pool threads. They are told of `timeout`; whoever waits for the future ends it then."""
        return self._calls.start(Call(operation, passages, steps), timeout)

    async def arun(self, operation: str, passages: int, steps: Steps[T], timeout: float | None = None) -> T:
        """Drives steps for an event loop."""
        return await self._calls.arun(Call(operation, passages, steps), timeout)


def _pair(request: object) -> tuple[str, Sequence[str | Passage]]:
    if not isinstance(request, tuple | list) or len(request) != 2:
        raise InvalidInput(f"It is a {type(request).__name__}; pass (query, passages), a tuple of two.")
    return request[0], request[1]


def _in_time(future: Future[T], timeout: float | None, start: float) -> T:
    if wait([future], None if timeout is None else max(0.0, start + timeout - time.monotonic())).not_done:
        future.cancel()
        raise late(timeout)
    return future.result()
