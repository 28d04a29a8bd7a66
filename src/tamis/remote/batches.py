"""One call, in as many requests as the server needs: split by its limit, halved where it refuses, merged by index."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.errors import InputTooLong, RemoteError
from tamis.options import Scale
from tamis.remote import answers
from tamis.remote.apis import Api, tokens_of
from tamis.remote.server import Server
from tamis.scorers.base import Scores
from tamis.scores import logit
from tamis.tokenizing import clean

_SIZE = re.compile(r"length|token|context|batch size|too long|too large|too many|passages|documents|texts", re.I)
_LIMIT = re.compile(r"exceed|maxim|\bmax\b|limit|at most|less than|longer|larger|too (long|large|many)|>", re.I)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a server is asked.

    Attributes:
        server: Whom.
        api: In which words.
        model: For which of its models.
        limit: Passages of a request.
        scale: What its numbers are.
        cut: Whether a passage that is too long may be cut, or is an error.
    """

    server: Server
    api: Api
    model: str
    limit: int
    scale: Scale
    cut: bool


async def score(plan: Plan, query: str, passages: Sequence[str], end: float) -> Scores:
    """The scores of n passages, in their order.

    Args:
        plan: How the server is asked.
        query: The question.
        passages: At least one.
        end: By `time.monotonic`: retries stop there.

    Raises:
        RemoteError: The server failed, or gave what cannot be trusted.
        InputTooLong: It refuses a passage for its length; the message has its index.
    """
    call = _Call(plan, clean(query), [clean(passage) or " " for passage in passages], end)
    await together([call.ask(group) for group in groups(len(passages), plan.limit)])
    return Scores(call.logits, call.truncated, call.tokens)


def groups(count: int, limit: int) -> list[list[int]]:
    """0 to count - 1 in as few groups as the limit allows, and those as even as can be.

    >>> groups(7, 3), groups(2, 3)
    ([[0, 1], [2, 3], [4, 5, 6]], [[0, 1]])
    """
    parts = -(-count // limit)
    return [list(range(count * part // parts, count * (part + 1) // parts)) for part in range(parts)]


def wants_less(error: RemoteError) -> bool:
    """Whether a server refused a request for its size: a long passage, too many of them, too many bytes.

    >>> wants_less(RemoteError("", status=400, detail="Input length 16384 exceeds maximum allowed token size 8192"))
    True
    >>> wants_less(RemoteError("", status=413)), wants_less(RemoteError("", status=400, detail="no such model"))
    (True, False)
    """
    if error.status == 413:
        return True
    return error.status in (400, 422) and bool(_SIZE.search(error.detail) and _LIMIT.search(error.detail))


class _Call:
    """What one call has gathered so far. An empty passage goes out as a blank: TEI and Voyage refuse empty strings."""

    def __init__(self, plan: Plan, query: str, passages: list[str], end: float) -> None:
        self._plan, self._query, self._passages, self._end = plan, query, passages, end
        self.logits = np.full(len(passages), np.nan)
        self.truncated = np.zeros(len(passages), dtype=np.bool_)
        self.tokens = 0

    async def ask(self, group: list[int], *, cut: bool = False) -> None:
        """Has the passages of a group scored; if the server wants less, in halves, down to the one it refuses.

        The halves are the shorter passages and the longer ones, so that few requests find those that are too long.
        """
        plan = self._plan
        body = plan.api.body(plan.model, self._query, [self._passages[i] for i in group], cut)
        try:
            answer = await plan.server.post(body, self._end)
        except RemoteError as error:
            if not wants_less(error):
                raise
            await self._ask_less(group, error, cut=cut)
            return
        try:
            numbers = answers.values(answer.json, plan.api, len(group))
            answers.check_scale(numbers, plan.scale)
        except answers.BadAnswer as error:
            raise plan.server.error(str(error), status=200) from None
        self.logits[group] = [logit(one) for one in numbers] if plan.scale == "probability" else numbers
        self.truncated[group] = cut
        self.tokens += tokens_of(answer.json, answer.tokens)

    async def _ask_less(self, group: list[int], error: RemoteError, *, cut: bool) -> None:
        plan = self._plan
        if len(group) > 1:
            ranked = sorted(group, key=lambda i: len(self._passages[i]))
            half = len(ranked) // 2
            await together([self.ask(sorted(ranked[:half])), self.ask(sorted(ranked[half:]))])
        elif plan.cut and not cut and plan.api.cuts == "asked":
            await self.ask(group, cut=True)
        else:
            advice = 'Split it, or load with long_documents="truncate" (its beginning).'
            if plan.cut:
                advice = "Cutting it does not help: split it, or ask a shorter question."
            raise InputTooLong(f"Passage {group[0]} is too long for the server. {error} {advice}") from None


async def together(asks: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Awaits all; the first that fails cancels the others."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for ask in asks:
                tasks.create_task(ask)
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
