"""A lease of a model that is not here: sequences go to a server, and the rows that come back are a local engine's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np

from tamis.engine.lm_sequences import Step, Warmed
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.errors import DeadlineExceeded
from tamis.remote import loop
from tamis.remote.batches import groups, together
from tamis.remote.completions import Completions, Label, row_of
from tamis.steps import deadline, reject
from tamis.tokenizing import TextTokenizer

T = TypeVar("T")

_end: ContextVar[float | None] = ContextVar("tamis_served_end", default=None)

PROMPTS = 16  # a request: with 8 requests at once, more than most servers run together


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a scorer asks of a loaded checkpoint; see `tamis.engine.loaded.Loaded`."""

    tokenizer: TextTokenizer
    facts: Mapping[str, Any]
    engine: Any
    extra: Callable[[], Mapping[str, Any]] = dict


class ServerLease:
    """The door to a served model, in the shape of `tamis.engine.loaded.Lease`.

    Args:
        model: The server's.
        tokenizer: The model's own, here.
        labels: True and False.
        key: What the model and its settings are told apart by.
        prompts: Prompts of one request.
        patience: Seconds that a call may take whose caller sets no timeout.
    """

    def __init__(
        self,
        model: Completions,
        tokenizer: TextTokenizer,
        labels: tuple[Label, Label],
        key: Hashable,
        *,
        prompts: int = PROMPTS,
        patience: float,
    ) -> None:
        self.loaded = Loaded(tokenizer, {"server": model.server.address.shown}, model.server)
        self.key = key
        self._model = model
        self._labels = labels
        self._prompts = prompts
        self._patience = patience

    def open(self) -> ServerSession:
        """A session for one request; those of one call that has no timeout end together."""
        end = deadline() or _end.get()
        if end is None:
            end = time.monotonic() + self._patience
            _end.set(end)  # in the context of the call's steps, and of no other
        return ServerSession(self, end)

    def close(self) -> None:
        """Closes the connections."""
        self._model.server.close()

    async def run(self, sequences: Sequence[Tokens], end: float) -> Outputs:
        """One row for each sequence: see `tamis.engine.language_model.LanguageModel`."""
        if isinstance(sequences[0], Step):
            writing = sequences[0].writing
            more: Any = writing.more  # of pieces of text, where a local model has tokens
            await self._model.write(sequences[0].ids.tolist(), writing.room, more, end)
            return [np.zeros(0, np.float32)]
        rows = np.zeros((len(sequences), 3))

        async def ask(group: list[int]) -> None:
            prompts = [sequences[place].ids.tolist() for place in group]
            if isinstance(sequences[group[0]], Warmed):
                await self._model.read(prompts, end)
            else:
                rows[group] = [row_of(top, *self._labels) for top in await self._model.first_tokens(prompts, end)]

        await together([ask(group) for group in groups(len(sequences), self._prompts)])
        return list(rows)

    async def bounded(self, work: Coroutine[Any, Any, T], end: float) -> T:
        """What the work gives, if it does so in time."""
        try:
            async with asyncio.timeout_at(end):
                return await work
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._model.server.address.shown} did not answer in time. Allow more with timeout= or deadline=."
            ) from None


class ServerSession:
    """What one request has under way; leaving it cancels that. In the shape of `tamis.engine.loaded.Session`."""

    backlog: Sequence[Future[Any]] = ()

    def __init__(self, lease: ServerLease, end: float) -> None:
        self._lease = lease
        self._end = end
        self.pending: list[Future[Any]] = []

    def submit(self, sequences: Sequence[Tokens]) -> Future[Outputs]:
        """Sends sequences of one kind."""
        future = loop.submit(lambda: self._lease.bounded(self._lease.run(sequences, self._end), self._end))
        self.pending.append(future)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for future in self.pending:
            reject(future, CancelledError())
