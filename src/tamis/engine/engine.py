"""One device or several, everybody's sequences.

Callers submit token sequences and get a `concurrent.futures.Future`; each device has a thread that takes what the
scheduler gives it, two batches at a time, sorted by length. An idle device starts at once; while all are busy,
arrivals gather and share the next batches. Identical sequences that wait or run at the same time are computed once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any
from weakref import WeakSet

from tamis.cache import ByteLRU
from tamis.engine.admission import Entry
from tamis.engine.device import Device, Runner
from tamis.engine.queue import Queue
from tamis.engine.requests import Outputs, Row
from tamis.engine.scheduler import Job
from tamis.engine.sequences import Tokens
from tamis.errors import DeviceLost, InvalidInput
from tamis.options import QUEUE_TOKENS
from tamis.steps import Party


class Engine:
    """Runs sequences through one model, batched over all callers.

    Args:
        runners: The model, once for each device.
        batch_tokens: What a batch may cost; lowered when a device runs out of memory, and raised again slowly.
        name: Of the model; the threads have it too.
        queue_tokens: What may wait; see `tamis.engine.admission`.
        score_bytes: How much memory rows may take that are kept for sequences to come; 0 keeps none.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        batch_tokens: int,
        name: str = "engine",
        *,
        queue_tokens: int = QUEUE_TOKENS,
        score_bytes: int = 0,
    ) -> None:
        self._devices = [Device(runner, batch_tokens) for runner in runners]
        self._batch_tokens = batch_tokens
        self.name = name
        self._limit = queue_tokens
        self._kept: ByteLRU[Row] = ByteLRU(score_bytes)
        self._forked = False
        self._queue = self._new()
        _ENGINES.add(self)

    def _new(self) -> Queue:
        return Queue(self._devices, self._batch_tokens, self._limit, self._kept, self.name)

    @property
    def closed(self) -> bool:
        """Whether it runs nothing any more."""
        return self._queue.closed

    def admit(self, *, wait: bool = False, party: Party | None = None) -> Entry:
        """See `Queue.admit`."""
        return self._queue.admit(wait=wait, party=party)

    def submit(
        self,
        sequences: Sequence[Tokens],
        job: Job[Any] | None = None,
        entry: Entry | None = None,
        *,
        more: bool = False,
    ) -> Future[Outputs]:
        """Queues sequences; the future brings one row for each, in their order.

        Ending the future (cancelling it, or setting an exception) withdraws what has not run.

        Args:
            sequences: What to run.
            job: Whose they are: all that one request submits belongs to one job.
            entry: The request's, from `admit`. Without room it is refused, or its sequences wait until there is some,
                and `entry.room` with them. None has no limit.
            more: These are but a beginning: the request can still be refused with what comes next.

        Raises:
            InvalidInput: A sequence has no tokens, for which no model has an answer.
            Closed: The engine was closed.
            DeviceLost: This process is a fork of the one that loaded the model on a GPU.
            Overloaded: There is no room, and nothing of the request has been let in.
        """
        if not sequences:
            nothing: Future[Outputs] = Future()
            nothing.set_result([])
            return nothing
        if not all(map(len, sequences)):
            raise InvalidInput(
                "A query or a passage becomes no token at all: the model's tokenizer knows none of it, and puts "
                "nothing around it. Leave it out."
            )
        if self._forked and not all(device.runner.survives_fork for device in self._devices):
            raise DeviceLost(
                "This process was forked after the model was loaded on a GPU, and CUDA does not survive a fork. Load "
                'the model in the child, or start processes with multiprocessing\'s "spawn" method.'
            )
        return self._queue.enter(sequences, Job() if job is None else job, entry, more=more)

    def stats(self) -> Mapping[str, Any]:
        """Counters since the load; times in seconds, `padding` as the share of computed tokens that were padding."""
        return {
            "packed": not any(device.runner.padded for device in self._devices),
            "batch_tokens": min(device.budget for device in self._devices),
            "devices": len(self._devices),
            **self._queue.summary(),
        }

    def close(self) -> None:
        """Stops after the running batches. Whoever still waits gets `Closed`."""
        threads = self._queue.close()
        if threads is None:
            return
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        for device in self._devices:
            device.runner.free()

    def _after_fork(self) -> None:
        """In a child, the parent's threads and callers are gone, and its locks may be held for ever."""
        over = self.closed
        self._forked = True
        for device in self._devices:
            device.thread = None
        self._queue = self._new()
        self._queue.closed = over


_ENGINES: WeakSet[Engine] = WeakSet()


def engines() -> list[Engine]:
    """Every engine of this process that is open."""
    return [engine for engine in list(_ENGINES) if not engine.closed]


def _renew_all() -> None:
    for engine in list(_ENGINES):
        engine._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
