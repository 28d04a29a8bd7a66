"""Listwise rerankers: one prompt holds the query and many passages, and a score depends on the whole list.

A passage's vector has seen the query and the passages before it; the query's, at the prompt's end, has seen them all.
So another order, or other neighbours, gives other scores: they compare passages of one call, and no others. That is
what such a model was trained for, and why nothing here is batched across requests but the device's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Lease
from tamis.engine.requests import Row
from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong, InvalidInput
from tamis.long_documents import QUERY_SHARE, LongDocuments, windows
from tamis.prompts import LEAST_ROOM
from tamis.scorers.base import Scores
from tamis.scorers.cross_encoder import CHUNK, best_of
from tamis.scores import from_cosine
from tamis.steps import Steps

Render: TypeAlias = Callable[[str, Sequence[str], str], str]
"""The whole prompt of a query, a list of passages and an instruction, which may be empty."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a family's published code allows: tokens of a query, tokens of a passage, passages of a block."""

    query: int
    passage: int
    block: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A passage, or a window of one: its text, how many tokens that is, and which characters of the passage."""

    text: str
    tokens: int
    span: tuple[int, int] | None = None


def blocks(lengths: Iterable[int], budget: int, most: int, longest: int) -> Iterator[slice]:
    """Which passages share a prompt: jina-reranker-v3's rule, in the order of the passages.

    A block is closed when it has `most` passages, or when what is left of the budget might not hold another.

    >>> list(blocks([30, 30, 30, 5], budget=100, most=125, longest=40))
    [slice(0, 2, None), slice(2, 4, None)]
    >>> list(blocks([1, 1, 1], budget=100, most=2, longest=40))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    start = end = 0
    left = budget
    for length in lengths:
        end += 1
        left -= length
        if end - start >= most or left <= longest:
            yield slice(start, end)
            start, left = end, budget
    if end > start:
        yield slice(start, end)


def cosines(query: NDArray[np.floating], rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of a query's vector (k,) with each of n, (n, k); 0 for a vector of zeros.

    >>> cosines(np.array([2.0, 0.0]), np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])).round(3).tolist()
    [1.0, 0.707, 0.0]
    """
    wide, one = rows.astype(np.float64), query.astype(np.float64)
    norms: NDArray[np.float64] = np.linalg.norm(wide, axis=1) * np.linalg.norm(one)
    products: NDArray[np.float64] = wide @ one
    return products / np.where(norms == 0, 1.0, norms)


def over_blocks(found: Sequence[Row]) -> NDArray[np.float64]:
    """Every passage's cosine with one vector for the query, which is jina-reranker-v3's mean over the blocks.

    A block weighs as much as its best passage, `(1 + cos) / 2`.

    Args:
        found: Of each block, its passages' vectors and after them the query's, (n + 1, k).

    >>> first, second = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])  # weights 1 and 1/2
    >>> over_blocks([first, second]).round(3).tolist()
    [1.0, 0.0]
    """
    weights = [float(((1.0 + cosines(rows[-1], rows[:-1])) / 2.0).max()) for rows in found]
    if not any(weights):
        weights = [1.0] * len(found)
    query = np.average([rows[-1].astype(np.float64) for rows in found], axis=0, weights=weights)
    return cosines(query, np.concatenate([rows[:-1] for rows in found]))


class ListwiseScorer:
    """A list in a prompt, vectors at its marks, their cosine; more than fits is split into blocks.

    Where the caller sets no `max_length`, blocks are cut as the published code cuts them: by the tokens of query and
    passages alone, so that a block of many short ones is longer by the prompt's own words. One that the caller sets
    holds for the whole block.

    Special tokens in a text are blanked out before anything is counted. The published code deletes the two marks
    after it has counted, and lets the others through, with which a text can end its turn.

    Args:
        lease: The loaded checkpoint.
        model: What it was called.
        render: The family's prompt.
        marks: The texts of the marked tokens.
        limits: The family's.
        max_length: Tokens of a block.
        exact: Whether `max_length` counts the prompt's own words.
        policy: What happens to a passage that does not fit. Windows stand in the list as passages of their own.
        instruction: The task, if there is one.

    Raises:
        InvalidInput: The prompt alone leaves no room within `max_length`.
    """

    mode = "causal-lm"

    def __init__(
        self,
        lease: Lease,
        *,
        model: str,
        render: Render,
        marks: Sequence[str],
        limits: Limits,
        max_length: int,
        exact: bool,
        policy: LongDocuments,
        instruction: str | None = None,
    ) -> None:
        self.model = model
        self._lease = lease
        self._tokenizer = lease.loaded.tokenizer
        self._render = render
        self._marks = tuple(marks)
        self._policy: LongDocuments = policy
        self._instruction = self._plain(instruction or "")
        self._most = limits.block
        frame, fewer, full = (self._count("", [""] * n) for n in (1, max(0, limits.block - 1), limits.block))
        self._each = full - fewer if exact else 0  # tokens around a passage
        self._room = max_length - frame  # for one passage, and the query twice
        if self._room < 3 * LEAST_ROOM:
            raise InvalidInput(
                f"max_length={max_length}, but the model's prompt takes {frame} tokens by itself; pass at least "
                f"max_length={2 * frame + 3 * LEAST_ROOM}."
            )
        self._budget = self._room + self._each if exact else max_length
        self._longest_query = min(limits.query, int(QUERY_SHARE * self._room) // 2)
        self._longest_passage = limits.passage
        self.count_tokens: TokenCounter | None = self._tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """One sequence for each block of passages."""
        asked, size, query_cut = self._asked(query)
        limit = min(self._longest_passage, self._room - 2 * size)
        parts: list[_Part] = []
        firsts: list[int] = []  # of each passage: its first part
        cut = np.full(len(passages), query_cut, np.bool_)
        total = 0

        def lengths() -> Iterator[int]:
            for start in range(0, len(passages), CHUNK):
                for number, own, shortened in self._parts(passages[start : start + CHUNK], limit, start):
                    firsts.append(len(parts))
                    cut[number] |= shortened
                    parts.extend(own)
                    yield from (part.tokens + self._each for part in own)

        with self._lease.open() as session:
            if room := session.backlog:
                yield room
            answers = []
            for block in blocks(lengths(), self._budget - 2 * size, self._most, limit + self._each):
                tokens = self._tokens(asked, [part.text for part in parts[block]])
                total += len(tokens)
                answers.append(session.submit([tokens]))
                if late := session.backlog:
                    yield late
            yield session.pending
            logits = over_blocks([answer.result()[0] for answer in answers])
        best = best_of(logits, firsts)
        spans = [parts[row].span for row in best.rows]
        return Scores(best.values, cut, total, windows=spans if any(spans) else None)

    def _asked(self, query: str) -> tuple[str, int, bool]:
        """The query, its tokens, and whether it is cut."""
        limit = self._longest_query
        text = self._plain(query)
        ids = self._tokenizer.encode([text], limit=limit)[0]
        if len(ids) <= limit:
            return text, len(ids), False
        if self._policy != "truncate":
            raise InputTooLong(
                f"The query has {len(ids)} tokens or more, and may take {limit}. Shorten it, or load with "
                'long_documents="truncate".'
            )
        return self._tokenizer.beginning(text, limit), limit, True

    def _parts(self, passages: Sequence[str], limit: int, first: int) -> Iterator[tuple[int, list[_Part], bool]]:
        """Of each passage its number, what of it stands in the list, and whether that is less than all."""
        texts = [self._plain(passage) for passage in passages]
        encoded = self._tokenizer.encode(texts, limit=limit)
        for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), first):
            if len(ids) <= limit:
                yield number, [_Part(text, len(ids))], False
            elif self._policy == "error":
                raise InputTooLong(
                    f"Passage {number} has {len(ids)} tokens or more, and {limit} fit. Split it, or load with "
                    'long_documents="max_window" (all of it, in windows) or "truncate" (its beginning).'
                )
            elif self._policy == "truncate":
                yield number, [_Part(self._tokenizer.beginning(text, limit), limit)], True
            else:
                yield number, list(self._windows(text, limit)), False

    def _windows(self, text: str, limit: int) -> Iterator[_Part]:
        places = self._tokenizer.offsets(text)
        for part in windows(len(places), limit):
            start, end = int(places[part.start, 0]), int(places[part.stop - 1, 1])
            yield _Part(text[start:end], part.stop - part.start, (start, end))

    def _plain(self, text: str) -> str:
        text = self._tokenizer.plain(text)
        for mark in self._marks:  # a tokenizer need not call them special
            text = text.replace(mark, " " * len(mark))
        return text

    def _tokens(self, query: str, passages: Sequence[str]) -> Tokens:
        return Tokens(self._tokenizer.encode([self._render(query, passages, self._instruction)])[0])

    def _count(self, query: str, passages: Sequence[str]) -> int:
        return len(self._tokens(query, passages))

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.from_cosine`."""
        return from_cosine(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters."""
        return {**self._lease.loaded.facts, **self._lease.loaded.engine.stats()}

    def close(self) -> None:
        """Gives the checkpoint back."""
        self._lease.close()
