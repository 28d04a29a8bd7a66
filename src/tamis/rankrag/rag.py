"""`RankRAG`: ranks, then answers, over one engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from tamis.engine.language_model import Step, Writing
from tamis.errors import InvalidInput
from tamis.inputs import Cut, checked
from tamis.rankrag.answers import Answer, AnswerUsage, Growing, Piece, Timings, says_nothing
from tamis.rankrag.prompts import Turn, checked_history
from tamis.reranker import Reranker
from tamis.scorers.rankrag import RankRAGScorer
from tamis.steps import Steps
from tamis.types import Hit, Passage, Ranking

LEAST_PASSAGE = 16  # tokens; less of a passage is not worth reading
TOP_K = 5


@dataclass(frozen=True, slots=True)
class _Asked:
    """One call, checked."""

    question: str
    passages: list[Passage]
    top_k: int
    min_score: float | None
    answer_anyway: bool
    task: str
    history: tuple[Turn, ...]
    max_new_tokens: int
    stop: tuple[str, ...]


class RankRAG:
    """One model that ranks the passages and answers from the best. Made by `tamis.load_rankrag`.

    Any number of threads and event loops may share one: their prompts and texts share batches.

    Every call takes the question as text and the passages as `str` or `Passage`, best anywhere. Besides:

    - top_k: How many passages the answer is written from, at most.
    - min_score: Passages below it are not read. Where none is left, no answer is made up: `answer.text` is empty and
      `answer.found` False, unless `answer_anyway`.
    - task: "short", "full", "claim" or "conversation": the paper's wordings; by default "short", and with a history
      "conversation".
    - history: Turns before the question, ("user", text) and ("assistant", text) in turn, or such mappings with role
      and content.
    - max_new_tokens: Of the answer; the paper's limit for the task if None.
    - stop: Strings that end it, besides the wording's own.

    Args:
        scorer: The model.
        decode: From token ids to text.
        ends: Token ids that end a text.
    """

    def __init__(self, scorer: RankRAGScorer, decode: Callable[[Sequence[int]], str], ends: Sequence[int]) -> None:
        self._scorer = scorer
        self._decode = decode
        self._ends = tuple(ends)
        self.reranker = Reranker(scorer)

    @property
    def model(self) -> str:
        """The hub id, folder or name that was loaded."""
        return self._scorer.model

    def rank(self, question: str, passages: Sequence[str | Passage], **options: Any) -> Ranking:
        """As `Reranker.rank`."""
        return self.reranker.rank(question, passages, **options)

    async def arank(self, question: str, passages: Sequence[str | Passage], **options: Any) -> Ranking:
        """As `Reranker.arank`."""
        return await self.reranker.arank(question, passages, **options)

    def answer(
        self, question: str, passages: Sequence[str | Passage], *, timeout: float | None = None, **options: Any
    ) -> Answer:
        """Ranks, and answers from the best. See the class for the options."""
        return self.reranker.run(
            "answer", len(passages), self._answering(self._asked(question, passages, options)), timeout
        )

    async def aanswer(
        self, question: str, passages: Sequence[str | Passage], *, timeout: float | None = None, **options: Any
    ) -> Answer:
        """As `answer`, from any event loop, without blocking it. Cancelling ends the text where it is."""
        steps = self._answering(self._asked(question, passages, options))
        return await self.reranker.arun("answer", len(passages), steps, timeout)

    def stream(self, question: str, passages: Sequence[str | Passage], **options: Any) -> Iterator[Piece]:
        """The answer's text as it is written; the last piece is empty and carries the `Answer`.

        Closing the iterator ends the text, and frees its place in the batch.
        """
        asked = self._asked(question, passages, options)
        pieces: SimpleQueue[str | None] = SimpleQueue()
        future = self.reranker.start("stream", len(passages), self._answering(asked, pieces.put))
        future.add_done_callback(lambda _: pieces.put(None))
        return self._pieces(pieces, future)

    async def astream(self, question: str, passages: Sequence[str | Passage], **options: Any) -> AsyncIterator[Piece]:
        """As `stream`, from any event loop, without blocking it."""
        import asyncio

        asked = self._asked(question, passages, options)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def put(piece: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future = self.reranker.start("stream", len(passages), self._answering(asked, put))
        future.add_done_callback(lambda _: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield Piece(piece)
            yield Piece("", future.result())
        finally:
            future.cancel()

    def warm(self, passages: Sequence[str | Passage], *, progress: bool = False, timeout: float | None = None) -> int:
        """Runs passages before there is a question, at indexing time: later questions cost only their own tokens.

        Args:
            passages: Any number; those that do not fit the cache make room for those that come after.
            progress: Show a progress bar on a terminal's standard error.
            timeout: Seconds after which `DeadlineExceeded` is raised.

        Returns:
            How many passages were run.
        """
        from tqdm.auto import tqdm

        texts = [passage.text for passage in checked("warm", passages)]
        with tqdm(total=len(texts), desc="warming", unit="passage", disable=None if progress else True) as bar:
            return self.reranker.run("warm", len(texts), self._scorer.warming(texts, bar.update), timeout)

    def stats(self) -> Mapping[str, Any]:
        """As `Reranker.stats`, and what the passages' cache holds."""
        return self.reranker.stats()

    def close(self) -> None:
        """Ends this object; whoever waits on it gets `Closed`."""
        self.reranker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: a framework that deep-copies its configuration shares the loaded model."""
        return self

    def __repr__(self) -> str:
        return f"RankRAG(model={self.model!r})"

    # -- one call ---------------------------------------------------------------------------------------------------

    def _asked(self, question: str, passages: Sequence[str | Passage], options: Mapping[str, Any]) -> _Asked:
        return self._check(question, passages, **options)

    def _check(
        self,
        question: str,
        passages: Sequence[str | Passage],
        *,
        top_k: int = TOP_K,
        min_score: float | None = None,
        answer_anyway: bool = False,
        task: str | None = None,
        history: Sequence[Any] = (),
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> _Asked:
        Cut(top_n=top_k, min_score=min_score)
        turns = checked_history(history)
        name = task or ("conversation" if turns else "short")
        limit = self._scorer.prompts.wording.task(name).max_new_tokens if max_new_tokens is None else max_new_tokens
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit < self._scorer.max_length // 2:
            raise InvalidInput(
                f"max_new_tokens={limit!r}; pass an int from 1 to {self._scorer.max_length // 2 - 1}, half of what the "
                "model reads and writes."
            )
        if isinstance(stop, str) or not all(isinstance(end, str) and end for end in stop):
            raise InvalidInput("stop is a list of strings that are not empty.")
        ends = (*self._scorer.prompts.wording.stop, *stop)
        given = checked(question, passages)
        return _Asked(question, given, top_k, min_score, answer_anyway, name, turns, limit, ends)

    def _answering(self, asked: _Asked, show: Callable[[str], None] = lambda piece: None) -> Steps[Answer]:
        start = time.perf_counter()
        scores = yield from self.reranker.scored(
            asked.passages,
            lambda texts: self._scorer.ranking(asked.question, texts, asked.task, asked.history),
        )
        ranking = self.reranker.ranked(asked.passages, scores, Cut(min_score=asked.min_score))
        ranked_at = time.perf_counter() - start
        best = list(ranking[: asked.top_k])
        if not best and asked.answer_anyway and asked.passages:
            whole = self.reranker.ranked(asked.passages, scores, Cut())
            best = list(whole[: asked.top_k])
        if not best:
            timings = Timings(ranked_at, 0.0, time.perf_counter() - start)
            return Answer("", ranking, (), False, AnswerUsage(ranking_tokens=scores.tokens), timings)
        ids, contexts, beginning = self._prompt(asked, best)
        first: list[float] = []
        growing = Growing(
            self._decode, ends=self._ends, stop=asked.stop, limit=asked.max_new_tokens, show=_unspaced(show)
        )

        def more(token: int) -> bool:
            if not first:
                first.append(time.perf_counter() - start)
            return growing.add(token)

        system = len(self._scorer.prompts.system)
        writing = Writing(system=system, more=more, beginning=beginning, room=asked.max_new_tokens)
        with self._scorer.lease.open() as session:
            if wait := session.backlog:
                yield wait
            session.submit([Step(ids, writing=writing)])
            yield session.pending
            for future in session.pending:
                future.result()
        text = growing.text.strip()
        usage = AnswerUsage(len(ids), writing.reused, growing.written, scores.tokens)
        timings = Timings(ranked_at, first[0], time.perf_counter() - start)
        found = not says_nothing(text, self._scorer.prompts.wording.not_found)
        return Answer(text, ranking, contexts, found, usage, timings)

    def _prompt(self, asked: _Asked, best: list[Hit]) -> tuple[Any, list[Hit], int]:
        """The answering prompt's ids, the hits in it, and how long the beginning is that ranking may have left."""
        prompts = self._scorer.prompts
        end = prompts.replying(asked.question, asked.task, asked.history)
        room = self._scorer.max_length - asked.max_new_tokens - len(prompts.system) - len(end)
        pieces: list[Any] = []
        contexts: list[Hit] = []
        texts: list[str] = []
        for hit in best:
            texts.append(hit.passage.text)
            piece = prompts.numbered(texts)[-1]
            if len(piece) > room:
                frame = len(piece) - prompts.count(hit.passage.text) + 4
                if room - frame < LEAST_PASSAGE:
                    break
                _, stop = prompts.span(hit.passage.text, slice(0, room - frame))
                texts[-1] = hit.passage.text[:stop]
                piece = prompts.numbered(texts)[-1][:room]
                hit = replace(hit, truncated=True)
            pieces.append(piece)
            contexts.append(hit)
            room -= len(piece)
            if hit.truncated and hit.passage.text != texts[-1]:
                break
        if not contexts:
            raise InvalidInput(
                f"The question and its history leave no room for a passage in the model's {self._scorer.max_length} "
                "tokens; shorten them, or pass a smaller max_new_tokens=."
            )
        ranked = prompts.ranked(texts[:1])[0]
        same = np.array_equal(ranked, pieces[0])  # only where the wording labels passages alike in both prompts
        beginning = len(prompts.system) + len(pieces[0]) if same else 0
        return np.concatenate([prompts.system, *pieces, end]), contexts, beginning

    @staticmethod
    def _pieces(pieces: SimpleQueue[str | None], future: Future[Answer]) -> Iterator[Piece]:
        try:
            while (piece := pieces.get()) is not None:
                yield Piece(piece)
            yield Piece("", future.result())
        finally:
            future.cancel()


def _unspaced(show: Callable[[str], None]) -> Callable[[str], None]:
    """Without the white space that an answer begins with."""
    begun = False

    def shown(piece: str) -> None:
        nonlocal begun
        piece = piece if begun else piece.lstrip()
        if piece:
            begun = True
            show(piece)

    return shown
