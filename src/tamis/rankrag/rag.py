"""`RankRAG`: ranks, then answers, over one engine."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Self, TypeAlias

from tamis.errors import InvalidInput
from tamis.inputs import Cut, check_query, checked
from tamis.rankrag.answering import AnsweringPrompt, answering_prompt
from tamis.rankrag.answers import Answer, AnswerUsage, Piece, Timings, says_nothing
from tamis.rankrag.completing import Completing, checked_stop
from tamis.rankrag.prompts import Turn, checked_history
from tamis.rankrag.streams import Show, astreamed, streamed, unspaced
from tamis.steps import Steps
from tamis.types import Hit, Passage, Ranking

TOP_K = 5

Given: TypeAlias = Sequence[str | Passage] | Ranking


@dataclass(frozen=True, slots=True)
class _Asked:
    """One call, checked."""

    question: str
    passages: list[Passage]
    ranking: Ranking | None  # of the passages, where they came in one
    top_k: int
    min_score: float | None
    answer_anyway: bool
    task: str
    history: tuple[Turn, ...]
    max_new_tokens: int
    stop: tuple[str, ...]


class RankRAG(Completing):
    """One model that ranks the passages and answers from the best. Made by `tamis.load_rankrag`.

    Any number of threads and event loops may share one: their prompts and texts share batches.

    Every call takes the question as text and the passages as `str` or `Passage`, best anywhere; those that answer take
    a `Ranking` too, whoever made it, and do not rank again. Besides:

    - top_k: How many passages the answer is written from, at most.
    - min_score: Passages below it are not read. Where none is left, no answer is made up: `answer.text` is empty and
      `answer.found` False, unless `answer_anyway`.
    - task: "short", "full", "claim" or "conversation": the paper's wordings; by default the one that was loaded with,
      and with a history "conversation".
    - history: Turns before the question, ("user", text) and ("assistant", text) in turn, or such mappings with role
      and content.
    - max_new_tokens: Of the answer; the paper's limit for the task if None.
    - stop: Strings that end it, besides the wording's own.

    Args:
        scorer: The model.
        decode: From token ids to text.
        ends: Token ids that end a text.
    """

    @property
    def model(self) -> str:
        """The hub id, folder or name that was loaded."""
        return self._scorer.model

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self._scorer.max_length

    def signature(self, question: str, *, task: str | None = None, history: Sequence[Any] = ()) -> str:
        """A digest of all that `rank` goes by besides the passages: equal ones rank alike."""
        turns = checked_history(history)
        return self._scorer.signature(question, self._task(task, turns), turns)

    def rank(
        self,
        question: str,
        passages: Sequence[str | Passage],
        *,
        task: str | None = None,
        history: Sequence[Any] = (),
        timeout: float | None = None,
        **cut: Any,
    ) -> Ranking:
        """As `Reranker.rank`, with the prompt of a task and after a conversation; see the class for both."""
        given = checked(question, passages)
        return self.reranker.run("rank", len(given), self._ranking(question, given, task, history, cut), timeout)

    async def arank(
        self,
        question: str,
        passages: Sequence[str | Passage],
        *,
        task: str | None = None,
        history: Sequence[Any] = (),
        timeout: float | None = None,
        **cut: Any,
    ) -> Ranking:
        """As `rank`, from any event loop, without blocking it."""
        given = checked(question, passages)
        return await self.reranker.arun("rank", len(given), self._ranking(question, given, task, history, cut), timeout)

    def answer(self, question: str, passages: Given, *, timeout: float | None = None, **options: Any) -> Answer:
        """Ranks, and answers from the best. See the class for the options."""
        asked = self._asked(question, passages, options)
        return self.reranker.run("answer", len(asked.passages), self._answering(asked), timeout)

    async def aanswer(self, question: str, passages: Given, *, timeout: float | None = None, **options: Any) -> Answer:
        """As `answer`, from any event loop, without blocking it. Cancelling ends the text where it is."""
        asked = self._asked(question, passages, options)
        return await self.reranker.arun("answer", len(asked.passages), self._answering(asked), timeout)

    def stream(
        self, question: str, passages: Given, *, timeout: float | None = None, **options: Any
    ) -> Generator[Piece]:
        """The answer's text as it is written: pieces that join to `Answer.text`.

        The first piece is empty and carries the `contexts`, as soon as the passages are ranked; the last is empty and
        carries the `answer`. Nothing runs before the first piece is asked for; closing the iterator ends the text, and
        frees its place in the batch. `timeout` is how long the whole may take.
        """
        asked = self._asked(question, passages, options)
        return streamed(lambda show: self._started(asked, show, timeout), timeout)

    def astream(
        self, question: str, passages: Given, *, timeout: float | None = None, **options: Any
    ) -> AsyncGenerator[Piece]:
        """As `stream`, from any event loop, without blocking it."""
        asked = self._asked(question, passages, options)
        return astreamed(lambda show: self._started(asked, show, timeout), timeout)

    def warm(self, passages: Sequence[str | Passage], *, progress: bool = False, timeout: float | None = None) -> int:
        """Runs passages before there is a question, at indexing time: later questions cost only their own tokens.

        Args:
            passages: Any number; those that do not fit the cache make room for those that come after.
            progress: Show a progress bar on a terminal's standard error.
            timeout: Seconds after which `DeadlineExceeded` is raised.

        Returns:
            How many passages there were; those that were kept already are not run again.
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

    def _asked(self, question: str, passages: Given, options: Mapping[str, Any]) -> _Asked:
        return self._check(question, passages, **options)

    def _check(
        self,
        question: str,
        passages: Given,
        *,
        top_k: int = TOP_K,
        min_score: float | None = None,
        answer_anyway: bool = False,
        task: str | None = None,
        history: Sequence[Any] = (),
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> _Asked:
        if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
            raise InvalidInput(f"top_k is {top_k!r}; pass an int of at least 1.")
        Cut(min_score=min_score)
        turns = checked_history(history)
        wording = self._scorer.prompts.wording
        name = self._task(task, turns)
        limit = wording.task(name).max_new_tokens if max_new_tokens is None else max_new_tokens
        if isinstance(limit, bool) or not isinstance(limit, Integral) or not 1 <= limit < self._scorer.max_length // 2:
            raise InvalidInput(
                f"max_new_tokens={limit!r}; pass an int from 1 to {self._scorer.max_length // 2 - 1}, half of what the "
                "model reads and writes."
            )
        ends = (*wording.stop, *checked_stop(stop))
        if isinstance(passages, Ranking):
            check_query(question)
            given, ranking = [hit.passage for hit in passages], passages
        else:
            given, ranking = checked(question, passages), None
        return _Asked(question, given, ranking, int(top_k), min_score, answer_anyway, name, turns, int(limit), ends)

    def _ranking(
        self, question: str, given: list[Passage], task: str | None, history: Sequence[Any], options: Mapping[str, Any]
    ) -> Steps[Ranking]:
        cut, turns = Cut(**options), checked_history(history)
        name = self._task(task, turns)
        self.reranker.check_cut(cut)

        def steps() -> Steps[Ranking]:
            scores = yield from self.reranker.scored(
                given, lambda texts: self._scorer.ranking(question, texts, name, turns)
            )
            return self.reranker.ranked(given, scores, cut)

        return steps()

    def _task(self, named: str | None, turns: Sequence[Turn]) -> str:
        """The task that holds: the one that is named; without one, with a history, the conversation's."""
        wording = self._scorer.prompts.wording
        if named is None:
            return "conversation" if turns and "conversation" in wording.tasks else self._scorer.task
        wording.task(named)
        return named

    def _started(self, asked: _Asked, show: Show, timeout: float | None) -> Future[Answer]:
        return self.reranker.start("stream", len(asked.passages), self._answering(asked, show), timeout)

    def _answering(self, asked: _Asked, show: Show = lambda piece: None) -> Steps[Answer]:
        start = time.perf_counter()
        whole, tokens = asked.ranking, 0
        if whole is None:
            scores = yield from self.reranker.scored(
                asked.passages,
                lambda texts: self._scorer.ranking(asked.question, texts, asked.task, asked.history),
            )
            whole, tokens = self.reranker.ranked(asked.passages, scores, Cut()), scores.tokens
        ranking = _above(whole, asked.min_score)
        ranked_at = time.perf_counter() - start
        best = list(ranking[: asked.top_k])
        if not best and asked.answer_anyway:
            best = list(whole[: asked.top_k])
        if not best:
            show(Piece("", contexts=()))
            timings = Timings(ranked_at, 0.0, time.perf_counter() - start)
            return Answer("", ranking, (), False, AnswerUsage(ranking_tokens=tokens), timings)
        prompt = self._prompt(asked, best)
        show(Piece("", contexts=prompt.contexts))
        growing, writing, first = yield from self._written(
            prompt.ids,
            system=len(self._scorer.prompts.system),
            beginning=prompt.beginning,
            limit=asked.max_new_tokens,
            stop=asked.stop,
            show=unspaced(show),
        )
        text = growing.text.strip()
        usage = AnswerUsage(len(prompt.ids), writing.reused, growing.written, tokens)
        timings = Timings(ranked_at, first - start, time.perf_counter() - start)
        found = not says_nothing(text, self._scorer.prompts.wording.not_found)
        return Answer(text, ranking, prompt.contexts, found, usage, timings)

    def _prompt(self, asked: _Asked, best: list[Hit]) -> AnsweringPrompt:
        prompts = self._scorer.prompts
        end = prompts.replying(asked.question, asked.task, asked.history)
        room = self._scorer.max_length - asked.max_new_tokens - len(prompts.system) - len(end)
        prompt = answering_prompt(prompts, best, end, room)
        if prompt is None:
            raise InvalidInput(
                f"The question and its history leave no room for a passage in the model's {self._scorer.max_length} "
                "tokens; shorten them, or pass a smaller max_new_tokens=."
            )
        return prompt


def _above(ranking: Ranking, least: float | None) -> Ranking:
    """What has at least a score."""
    if least is None:
        return ranking
    hits = [hit for hit in ranking if hit.score >= least]
    below = ranking.usage.below_min_score + len(ranking) - len(hits)
    return replace(ranking, hits=hits, usage=replace(ranking.usage, below_min_score=below))
