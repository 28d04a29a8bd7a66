"""One device, one thread, everybody's sequences.

Callers submit token sequences and get a `concurrent.futures.Future`; the engine's thread takes all that has gathered,
sorts it by length, cuts it into batches of a token budget and runs them. An idle engine starts at once; while it is
busy, arrivals gather and share the next batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tamis.engine.sequences import Tokens, by_length, cut
from tamis.errors import Closed, OutOfMemory
from tamis.steps import reject, resolve

logger = logging.getLogger(__name__)

WINDOW = 16  # batches' worth of tokens that are taken from the queue and sorted together
Outputs = NDArray[np.float32]


class Runner(Protocol):
    """A model on a device. The engine calls it from its own thread, and from no other."""

    @property
    def padded(self) -> bool:
        """Whether a batch costs its longest length times its size, instead of the sum of its lengths."""

    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """One row of float32 for each sequence, shape (len(batch), k). Raises torch.OutOfMemoryError as torch does."""

    def free(self) -> None:
        """Lets go of the model."""


@dataclass(slots=True)
class _Ticket:
    """Sequences that arrived together, and what has come back of them."""

    sequences: Sequence[Tokens]
    future: Future[Outputs] = field(default_factory=Future)
    rows: list[Any] = field(default_factory=list)
    left: int = 0


@dataclass(slots=True)
class _Counters:
    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    padding: int = 0
    out_of_memory: int = 0
    seconds: float = 0.0


class Engine:
    """Runs sequences through one model, batched over all callers.

    Args:
        runner: The model.
        batch_tokens: What a batch may cost; lowered for good when the device runs out of memory.
        name: Of the thread, for debuggers.
    """

    def __init__(self, runner: Runner, batch_tokens: int, name: str = "engine") -> None:
        self._runner = runner
        self._budget = batch_tokens
        self._name = name
        self._queue: deque[_Ticket] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._counters = _Counters()

    def submit(self, sequences: Sequence[Tokens]) -> Future[Outputs]:
        """Queues sequences; the future brings one row for each, in their order.

        Ending the future (cancelling it, or setting an exception) withdraws what has not run.

        Raises:
            Closed: The engine was closed.
        """
        ticket = _Ticket(sequences, rows=[None] * len(sequences), left=len(sequences))
        if not sequences:
            resolve(ticket.future, np.zeros((0, 0), np.float32))
            return ticket.future
        with self._wake:
            if self._closed:
                raise Closed("The engine was closed. Load the model again with tamis.load().")
            self._queue.append(ticket)
            if self._thread is None or not self._thread.is_alive():  # the first call, or a child after a fork
                self._thread = threading.Thread(target=self._loop, name=f"tamis-{self._name}", daemon=True)
                self._thread.start()
            self._wake.notify()
        return ticket.future

    def stats(self) -> Mapping[str, Any]:
        """Counters since the load: `padding` is the share of computed tokens that were padding."""
        c = self._counters
        with self._wake:
            waiting = sum(len(ticket.sequences) for ticket in self._queue)
        return {
            "queued_sequences": waiting,
            "batches": c.batches,
            "sequences": c.sequences,
            "tokens": c.tokens,
            "tokens_per_batch": c.tokens / c.batches if c.batches else 0.0,
            "padding": c.padding / (c.tokens + c.padding) if c.tokens else 0.0,
            "packed": not self._runner.padded,
            "batch_tokens": self._budget,
            "out_of_memory": c.out_of_memory,
            "device_seconds": c.seconds,
        }

    def close(self) -> None:
        """Stops after the running batch. Whoever still waits gets `Closed`."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is None or not thread.is_alive():
            self._end()
        elif thread is not threading.current_thread():
            thread.join()

    def _loop(self) -> None:
        tickets: list[_Ticket] = []
        try:
            while tickets := self._take():
                self._run(tickets)
        except BaseException as error:
            for ticket in tickets:
                reject(ticket.future, error)
            self._drop(error)
            raise
        self._end()

    def _take(self) -> list[_Ticket]:
        """Waits for work; returns the oldest tickets, about `WINDOW` batches of them, or nothing when closed."""
        with self._wake:
            while True:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return []
                taken: list[_Ticket] = []
                room = WINDOW * self._budget
                while self._queue and (room > 0 or not taken):
                    ticket = self._queue.popleft()
                    if not ticket.future.done():
                        taken.append(ticket)
                        room -= sum(map(len, ticket.sequences))
                if taken:
                    return taken

    def _run(self, tickets: list[_Ticket]) -> None:
        entries = [(ticket, place) for ticket in tickets for place in range(len(ticket.sequences))]
        lengths = [len(ticket.sequences[place]) for ticket, place in entries]
        ranked = by_length(lengths)
        todo = [entries[i] for i in ranked]
        while todo:
            todo = [(ticket, place) for ticket, place in todo if not ticket.future.done()]
            if self._closed:
                self._fail(todo, _closed())
                return
            batches = cut([len(t.sequences[p]) for t, p in todo], self._budget, padded=self._runner.padded)
            if not batches:
                return
            # Only the first is run: a batch that does not fit changes the budget, and with it all later cuts.
            batch, todo = todo[batches[0]], todo[batches[0].stop :]
            todo = self._one(batch) + todo

    def _one(self, batch: list[tuple[_Ticket, int]]) -> list[tuple[_Ticket, int]]:
        """Runs a batch and delivers it; returns what must run again in smaller batches."""
        from torch import OutOfMemoryError

        sequences = [ticket.sequences[place] for ticket, place in batch]
        start = time.perf_counter()
        try:
            rows = self._runner.run(sequences)
        except OutOfMemoryError as error:
            return self._smaller(batch, error)
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers, and the engine lives on
            self._fail(batch, error)
            return []
        lengths = [len(tokens) for tokens in sequences]
        c = self._counters
        c.seconds += time.perf_counter() - start
        c.batches += 1
        c.sequences += len(batch)
        c.tokens += sum(lengths)
        c.padding += max(lengths) * len(lengths) - sum(lengths) if self._runner.padded else 0
        for (ticket, place), row in zip(batch, rows, strict=True):
            ticket.rows[place] = row
            ticket.left -= 1
            if not ticket.left:
                resolve(ticket.future, np.stack(ticket.rows))
        return []

    def _smaller(self, batch: list[tuple[_Ticket, int]], error: BaseException) -> list[tuple[_Ticket, int]]:
        self._counters.out_of_memory += 1
        if len(batch) == 1:
            ticket, place = batch[0]
            message = f"A sequence of {len(ticket.sequences[place])} tokens alone does not fit the device's memory; "
            failure = OutOfMemory(message + "load the model with a smaller max_length, or on another device.")
            failure.__cause__ = error.with_traceback(None)  # whose frames would keep the tensors alive
            reject(ticket.future, failure)
            return []
        cost = sum(len(ticket.sequences[place]) for ticket, place in batch)
        self._budget = max(1, min(self._budget, cost) // 2)
        logger.warning("Out of memory at %d tokens a batch; going on with %d.", cost, self._budget)
        return batch

    def _fail(self, batch: list[tuple[_Ticket, int]], error: BaseException) -> None:
        for ticket, _ in batch:
            reject(ticket.future, error)

    def _drop(self, error: BaseException) -> None:
        with self._wake:
            waiting, self._queue = list(self._queue), deque()
        for ticket in waiting:
            reject(ticket.future, error)

    def _end(self) -> None:
        self._drop(_closed())
        self._runner.free()


def _closed() -> Closed:
    return Closed("The engine was closed while this request waited. Load the model again with tamis.load().")
