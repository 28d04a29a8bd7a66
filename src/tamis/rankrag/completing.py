"""Texts from a prompt alone: what a framework's language models need of a RankRAG model."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from tamis.engine.lm_sequences import Step, Writing
from tamis.errors import InputTooLong, InvalidInput
from tamis.rankrag.answers import Answer, AnswerUsage, Growing, Piece, Timings
from tamis.rankrag.conversations import Message, checked_prompt, prompt_ids
from tamis.rankrag.streams import Show, Start, astreamed, streamed, unspaced
from tamis.reranker import Reranker
from tamis.scorers.rankrag import RankRAGScorer
from tamis.steps import Steps
from tamis.tokenizing import Ids
from tamis.types import Ranking

COMPLETION_TOKENS = 256


class Completing:
    """The half of `RankRAG` that writes.

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

    def complete(
        self,
        prompt: str | Sequence[Any],
        *,
        max_new_tokens: int = COMPLETION_TOKENS,
        stop: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Answer:
        """Writes on after a prompt, without passages. It joins the batches of everything else.

        Args:
            prompt: A text, which the model reads as it is, special tokens and all; or a conversation, pairs of
                "system", "user" or "assistant" and what was said, or such mappings with role and content, which it
                reads in its chat template, or in the wording's turns where the wording has some.
            max_new_tokens: Of the text; it ends sooner where the model's length is full.
            stop: Strings that end it; a conversation also ends at the wording's own.
            timeout: Seconds after which `DeadlineExceeded` is raised.

        Returns:
            The text, where an answer's would be, and what it cost; `ranking` and `contexts` are empty, and `found`
            says whether there is any text.

        Raises:
            InvalidInput: The prompt is empty, or the chat template does not take the conversation.
            InputTooLong: The prompt leaves no room for a token.
        """
        return self.reranker.run("complete", 0, self._completing(*_checked(prompt, max_new_tokens, stop)), timeout)

    async def acomplete(
        self,
        prompt: str | Sequence[Any],
        *,
        max_new_tokens: int = COMPLETION_TOKENS,
        stop: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Answer:
        """As `complete`, from any event loop, without blocking it. Cancelling ends the text where it is."""
        steps = self._completing(*_checked(prompt, max_new_tokens, stop))
        return await self.reranker.arun("complete", 0, steps, timeout)

    def stream_complete(
        self,
        prompt: str | Sequence[Any],
        *,
        max_new_tokens: int = COMPLETION_TOKENS,
        stop: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Generator[Piece]:
        """As `complete`, as it is written: pieces that join to the text; the last is empty and carries the `answer`.

        Nothing runs before the first piece is asked for; closing the iterator ends the text, and frees its place in
        the batch.
        """
        return streamed(self._begin(prompt, max_new_tokens, stop, timeout), timeout)

    def astream_complete(
        self,
        prompt: str | Sequence[Any],
        *,
        max_new_tokens: int = COMPLETION_TOKENS,
        stop: Sequence[str] = (),
        timeout: float | None = None,
    ) -> AsyncGenerator[Piece]:
        """As `stream_complete`, from any event loop, without blocking it."""
        return astreamed(self._begin(prompt, max_new_tokens, stop, timeout), timeout)

    def _begin(
        self, prompt: str | Sequence[Any], max_new_tokens: int, stop: Sequence[str], timeout: float | None
    ) -> Start:
        asked = _checked(prompt, max_new_tokens, stop)
        return lambda show: self.reranker.start("complete", 0, self._completing(*asked, show), timeout)

    def _completing(
        self,
        prompt: str | tuple[Message, ...],
        max_new_tokens: int,
        stop: tuple[str, ...],
        show: Show = lambda piece: None,
    ) -> Steps[Answer]:
        start = time.perf_counter()
        wording, talk = self._scorer.prompts.wording, not isinstance(prompt, str)
        ids = prompt_ids(prompt, wording, self._scorer.lease.loaded.tokenizer)
        room = self._scorer.max_length - len(ids)
        if room < 1:
            raise InputTooLong(
                f"The prompt has {len(ids)} tokens, and the model reads and writes {self._scorer.max_length}. Shorten "
                "it, or load the model with a larger max_length= if it can read more."
            )
        opening = self._scorer.prompts.system
        known = len(ids) > len(opening) and np.array_equal(ids[: len(opening)], opening)
        growing, writing, first = yield from self._written(
            ids,
            system=len(opening) if known else 0,
            limit=min(max_new_tokens, room),
            stop=(*wording.stop, *stop) if talk else stop,
            show=unspaced(show) if talk else lambda piece: show(Piece(piece)),
        )
        text = growing.text.strip() if talk else growing.text
        usage = AnswerUsage(len(ids), writing.reused, growing.written)
        timings = Timings(0.0, first - start, time.perf_counter() - start)
        return Answer(text, Ranking((), self._scorer.model), (), bool(text.strip()), usage, timings)

    def _written(
        self,
        ids: Ids,
        *,
        system: int,
        beginning: int = 0,
        limit: int,
        stop: tuple[str, ...],
        show: Callable[[str], None],
    ) -> Steps[tuple[Growing, Writing, float]]:
        """Has the text of a prompt written; with it, when its first token came, by `time.perf_counter`."""
        first: list[float] = []
        growing = Growing(self._decode, ends=self._ends, stop=stop, limit=limit, show=show)

        def more(token: int) -> bool:
            if not first:
                first.append(time.perf_counter())
            return growing.add(token)

        writing = Writing(system=system, more=more, beginning=beginning, room=limit)
        with self._scorer.lease.open() as session:
            if wait := session.backlog:
                yield wait
            session.submit([Step(ids, writing=writing)])
            yield session.pending
            for future in session.pending:
                future.result()
        return growing, writing, first[0]


def checked_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Strings that end a text.

    Raises:
        InvalidInput: They are something else, or one is empty.
    """
    listed = isinstance(stop, Iterable) and not isinstance(stop, str | bytes)
    if not listed or not all(isinstance(end, str) and end for end in stop):
        raise InvalidInput("stop is a list of strings that are not empty.")
    return tuple(stop)


def _checked(
    prompt: str | Sequence[Any], max_new_tokens: int, stop: Sequence[str]
) -> tuple[str | tuple[Message, ...], int, tuple[str, ...]]:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens={max_new_tokens!r}; pass an int of at least 1.")
    return checked_prompt(prompt), int(max_new_tokens), checked_stop(stop)
