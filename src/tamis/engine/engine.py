"""One device or several, everybody's sequences.

Callers submit token sequences and get a `concurrent.futures.Future`; each device has a thread that takes what the
scheduler gives it, two batches at a time, sorted by length. An idle device starts at once; while all are busy,
arrivals gather and share the next batches. Identical sequences that wait or run at the same time are computed once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np

from tamis.cache import ByteLRU
from tamis.engine.counters import Counters
from tamis.engine.device import Device, Runner
from tamis.engine.requests import Outputs, Row, Sent, Ticket, digest
from tamis.engine.scheduler import Job, Scheduler, Work
from tamis.engine.sequences import Tokens
from tamis.errors import Closed, DeviceLost, Overloaded
from tamis.options import QUEUE_TOKENS
from tamis.steps import reject, resolve

WINDOW = 2  # batches that are taken, and sorted by length, together; a newcomer waits for no more than these
FRESH = 2  # batches that a request may have before others go first


class Engine:
    """Runs sequences through one model, batched over all callers.

    Args:
        runners: The model, once for each device.
        batch_tokens: What a batch may cost; lowered when a device runs out of memory, and raised again slowly.
        name: Of the model; the threads have it too.
        queue_tokens: What may wait before `admit` refuses.
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
        self.closed = False
        self._forked = False
        self._start()
        _ENGINES.add(self)

    def _start(self) -> None:
        """State that belongs to one process: a forked child begins anew."""
        self._wake = threading.Condition()
        self._scheduler: Scheduler[Sent] = Scheduler(max(1, self._batch_tokens // 4), FRESH * self._batch_tokens)
        self._pending: dict[bytes, Work[Sent]] = {}  # waiting or running, by digest
        self._rooms: deque[Future[None]] = deque()  # who waits for room in the queue
        self.counters = Counters()
        for device in self._devices:
            device.thread = None

    # -- for callers ------------------------------------------------------------------------------------------------

    def admit(self, *, wait: bool = False) -> Future[None]:
        """A place in the queue: done at once where there is room.

        Args:
            wait: Have the future wait for room, instead of raising.

        Raises:
            Overloaded: As many tokens wait as may, and `wait` is False.
        """
        room: Future[None] = Future()
        with self._wake:
            if self._scheduler.tokens < self._limit:
                resolve(room, None)
            elif wait:
                self._rooms.append(room)
            else:
                self.counters.refused += 1
                raise Overloaded(
                    f"{self._scheduler.tokens} tokens wait for this model already, and {self._limit} may. Try again "
                    'later, wait with load(..., overload="wait"), or allow more with queue_tokens=.'
                )
        return room

    def submit(self, sequences: Sequence[Tokens], job: Job[Any] | None = None) -> Future[Outputs]:
        """Queues sequences; the future brings one row for each, in their order.

        Ending the future (cancelling it, or setting an exception) withdraws what has not run.

        Args:
            sequences: What to run.
            job: Whose they are: all that one request submits belongs to one job.

        Raises:
            Closed: The engine was closed.
            DeviceLost: This process is a fork of the one that loaded the model on a GPU.
        """
        ticket = Ticket([None] * len(sequences), len(sequences), time.perf_counter())
        if not sequences:
            resolve(ticket.future, [])
            return ticket.future
        keys = [digest(tokens) for tokens in sequences]
        with self._wake:
            self._check()
            self._enqueue(ticket, sequences, keys, Job() if job is None else job)
            self._run_threads()
            self._wake.notify_all()
        if not ticket.left:
            self._deliver(ticket)
        ticket.future.add_done_callback(partial(self._settle, ticket))
        return ticket.future

    def stats(self) -> Mapping[str, Any]:
        """Counters since the load; times in seconds, `padding` as the share of computed tokens that were padding."""
        with self._wake:
            return {
                "queued_sequences": self._scheduler.count,
                "queued_tokens": self._scheduler.tokens,
                "packed": not any(device.runner.padded for device in self._devices),
                "batch_tokens": min(device.budget for device in self._devices),
                "devices": len(self._devices),
                "score_cache_hits": self._kept.hits,
                **self.counters.summary(),
            }

    def close(self) -> None:
        """Stops after the running batches. Whoever still waits gets `Closed`."""
        with self._wake:
            if self.closed:
                return
            self.closed = True
            self._wake.notify_all()
            threads = [device.thread for device in self._devices if device.alive()]
        self._drop(_closed())
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        for device in self._devices:
            device.runner.free()

    # -- the queue --------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.closed:
            raise Closed("The engine was closed. Load the model again with tamis.load().")
        if self._forked and not all(device.runner.survives_fork for device in self._devices):
            raise DeviceLost(
                "This process was forked after the model was loaded on a GPU, and CUDA does not survive a fork. Load "
                'the model in the child, or start processes with multiprocessing\'s "spawn" method.'
            )

    def _enqueue(self, ticket: Ticket, sequences: Sequence[Tokens], keys: list[bytes], job: Job[Any]) -> None:
        new = []
        for place, (tokens, key) in enumerate(zip(sequences, keys, strict=True)):
            row = self._kept.get(key) if self._kept.limit else None
            if row is not None:
                ticket.rows[place] = row
                ticket.left -= 1
                continue
            work = self._pending.get(key)
            if work is None:
                work = self._pending[key] = Work(Sent(tokens, key, [], job), self._devices[0].cost(tokens))
                new.append(work)
            elif work.waiting:  # in another job's line, where it may have to wait for longer than in ours
                self.counters.shared += 1
                self._scheduler.share(job, work)
            else:
                self.counters.shared += 1
            work.payload.takers.append((ticket, place))
            ticket.works.append(work)
        self._scheduler.add(job, new)

    def _settle(self, ticket: Ticket, _: Future[Outputs]) -> None:
        """A ticket is done, or its caller has gone: what only it wanted leaves the queue."""
        if ticket.left:
            with self._wake:
                for work in ticket.works:
                    if work.waiting and not work.payload.wanted():
                        self._scheduler.drop(work)
                        self._pending.pop(work.payload.key, None)
                self._make_room()
        ticket.works = []

    def _make_room(self) -> None:
        while self._rooms and self._scheduler.tokens < self._limit:
            resolve(self._rooms.popleft(), None)

    def _drop(self, error: BaseException, died: Device | None = None) -> None:
        """Whoever waits gets `error`; if a device died and another lives, the other goes on with what waits."""
        with self._wake:
            if died is not None:
                died.thread = None  # the next call starts another
                if any(device.alive() for device in self._devices):
                    return
            pending, self._pending = list(self._pending.values()), {}
            rooms, self._rooms = list(self._rooms), deque()
            for work in pending:
                self._scheduler.drop(work)
        self.fail(pending, error)
        for room in rooms:
            reject(room, error)

    # -- for the devices' threads: `tamis.engine.device.Exchange` ----------------------------------------------------

    def _run_threads(self) -> None:
        for number, device in enumerate(self._devices):
            if not device.alive():  # the first call, after a thread died, or in a child after a fork
                device.start(self, f"tamis-{self.name}-{number}")

    def take(self, room: int) -> list[Work[Sent]]:
        """Waits for work; returns about `WINDOW` batches of `room` tokens, or nothing when closed."""
        with self._wake:
            while not self._scheduler and not self.closed:
                self._wake.wait()
            if self.closed:
                return []
            works = self._scheduler.take(WINDOW * room)
            self._make_room()
        now = time.perf_counter()
        for work in works:
            self.counters.waited(now - work.payload.arrived())
        return works

    def give(self, work: Work[Sent], row: Row) -> None:
        """A row is done: everybody who asked for it gets it, unless it leads to another first."""
        try:
            following = work.payload.tokens.after(row)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever reads the rows, and the device lives on
            self.fail([work], error)
            return
        with self._wake:
            self._pending.pop(work.payload.key, None)
            if following is not None:
                self._follow(work.payload, following)
                return
            takers = work.payload.takers
        if self._kept.limit and np.isfinite(row).all():
            self._kept.put(work.payload.key, row.copy(), row.nbytes)
        for ticket, place in takers:
            ticket.rows[place] = row
            with self._wake:
                ticket.left -= 1
                done = not ticket.left
            if done:
                self._deliver(ticket)

    def _follow(self, sent: Sent, tokens: Tokens) -> None:
        """Queues what comes next, so that the device's next batch has it, with whatever else waits."""
        if not sent.wanted():
            return
        work = Work(Sent(tokens, digest(tokens), sent.takers, sent.job), len(tokens))
        self._pending[work.payload.key] = work
        for ticket, _ in sent.takers:
            ticket.works.append(work)
        self._scheduler.add(sent.job, [work])

    def _deliver(self, ticket: Ticket) -> None:
        self.counters.answered(time.perf_counter() - ticket.arrived)
        resolve(ticket.future, [row for row in ticket.rows if row is not None])

    def wanted(self, work: Work[Sent]) -> bool:
        """Whether anybody waits for it still; if not, it is forgotten."""
        with self._wake:
            if work.payload.wanted():
                return True
            self._pending.pop(work.payload.key, None)
        return False

    def died(self, device: Device, error: BaseException, works: Sequence[Work[Sent]]) -> None:
        """A device's thread ended: whoever waited for it gets the cause, and the next call starts another."""
        lost = DeviceLost(f"A thread of the engine died ({error!r}); the next call starts another.")
        lost.__cause__ = error
        self.counters.deaths += 1
        self._drop(lost, died=device)
        self.fail(works, lost)

    def fail(self, works: Sequence[Work[Sent]], error: BaseException) -> None:
        """Nothing will come of these: everybody who asked for them gets `error`."""
        for work in works:
            with self._wake:
                self._pending.pop(work.payload.key, None)
                takers = list(work.payload.takers)
            for ticket, _ in takers:
                reject(ticket.future, error)

    def _after_fork(self) -> None:
        """In a child, the parent's threads and callers are gone, and its locks may be held for ever."""
        self._forked = True
        self._start()


def _closed() -> Closed:
    return Closed("The engine was closed while this request waited. Load the model again with tamis.load().")


_ENGINES: WeakSet[Engine] = WeakSet()


def engines() -> list[Engine]:
    """Every engine of this process that is open."""
    return [engine for engine in list(_ENGINES) if not engine.closed]


def _renew_all() -> None:
    for engine in list(_ENGINES):
        engine._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
