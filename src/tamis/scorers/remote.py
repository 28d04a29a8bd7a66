"""`remote`: another server's scores, over HTTP. See `tamis.remote`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tamis.errors import DeadlineExceeded
from tamis.remote import loop
from tamis.remote.batches import Plan, score
from tamis.scorers.base import Scores
from tamis.scores import from_cosine, sigmoid
from tamis.steps import Steps, deadline


class RemoteScorer:
    """A server as a scorer: a call is one future, of the loop that does its requests.

    Args:
        plan: How the server is asked.
        patience: Seconds that a call may take whose caller sets no timeout.
    """

    mode = "remote"
    count_tokens = None  # the tokenizer is the server's

    def __init__(self, plan: Plan, patience: float) -> None:
        self._plan = plan
        self._patience = patience

    @property
    def model(self) -> str:
        """The model's name on the server, or the server's address where it has but one."""
        return self._plan.model or self._plan.server.address.shown

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """Waits for the server without a thread; whoever withdraws the future cancels the requests."""
        end = deadline()
        if end is None:
            end = time.monotonic() + self._patience
        future = loop.submit(lambda: self._scored(query, passages, end))
        yield [future]
        return future.result()

    def to_score(self, logit: float) -> float:
        """The sigmoid, of a probability's logit the probability again; of a cosine see `tamis.scores.from_cosine`."""
        return from_cosine(logit) if self._plan.scale == "cosine" else sigmoid(logit)

    def stats(self) -> Mapping[str, Any]:
        """Requests over the wire and their times; see `tamis.remote.server.Server.stats`."""
        return self._plan.server.stats()

    def close(self) -> None:
        """Closes the connections."""
        self._plan.server.close()

    async def _scored(self, query: str, passages: Sequence[str], end: float) -> Scores:
        try:
            async with asyncio.timeout_at(end):  # the loop's clock is time.monotonic
                return await score(self._plan, query, passages, end)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._plan.server.address.shown} did not answer in time. Allow more with timeout= or deadline=, or "
                "send less at once."
            ) from None
