"""What waits for the devices of an engine, and who waits for it.

Callers put sequences in, devices take them and give rows back. All of it happens under one lock, which is held for
bookkeeping only: no model runs under it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from tamis.cache import ByteLRU
from tamis.engine.admission import Admission, Entry, Standing
from tamis.engine.counters import Counters
from tamis.engine.device import Device
from tamis.engine.requests import Outputs, Row, Sent, Ticket, digest
from tamis.engine.scheduler import Job, Scheduler, Work
from tamis.engine.sequences import Tokens
from tamis.errors import Closed, DeviceLost, Overloaded
from tamis.steps import Party, reject, resolve

WINDOW = 2  # batches that are taken, and sorted by length, together; a newcomer waits for no more than these
FRESH = 2  # batches that a request may have before others go first


class Queue:
    """The sequences of all callers, on their way through the devices: the devices' `Exchange`.

    Args:
        devices: Who takes them; what a sequence costs is asked of the first.
        batch_tokens: What a batch may cost.
        limit: Tokens that may wait; see `tamis.engine.admission`.
        kept: Rows of sequences that ran before.
        name: Of the devices' threads.
    """

    def __init__(self, devices: Sequence[Device], batch_tokens: int, limit: int, kept: ByteLRU[Row], name: str) -> None:
        self._devices = devices
        self._name = name
        self._kept = kept
        self._wake = threading.Condition()
        self._scheduler: Scheduler[Sent] = Scheduler(max(1, batch_tokens // 4), FRESH * batch_tokens)
        self._pending: dict[bytes, Work[Sent]] = {}  # waiting or running, by digest
        self._admission = Admission(limit)
        self.counters = Counters()
        self.closed = False

    # -- for callers ------------------------------------------------------------------------------------------------

    def admit(self, *, wait: bool = False, party: Party | None = None) -> Entry:
        """How a request begins, before its texts are tokens: with `room` at once, unless the queue is full already.

        Args:
            wait: Have it wait for room, now and later, instead of being refused.
            party: The requests that it belongs to.

        Raises:
            Overloaded: As many tokens wait as may, and `wait` is False.
        """
        entry = Entry(wait, party=party)
        with self._wake:
            if self._admission.fits(self._scheduler.tokens):
                resolve(entry.room, None)
            elif entry.stays:
                self._admission.stand(Standing(entry.room, entry.room))
            else:
                raise self._refused()
        return entry

    def enter(
        self,
        sequences: Sequence[Tokens],
        job: Job[Any],
        entry: Entry | None = None,
        *,
        more: bool = False,
    ) -> Future[Outputs]:
        """Puts sequences in, or in line for room; see `Engine.submit`.

        Raises:
            Closed: There is nobody to run them.
            Overloaded: There is no room, and nothing of the request has been let in.
        """
        ticket = Ticket([None] * len(sequences), len(sequences), time.perf_counter())
        keys = [digest(tokens) for tokens in sequences]
        cost = partial(self._cost, sequences, keys)
        enter = partial(self._enqueue, ticket, sequences, keys, job, None if entry is None else entry.party)
        with self._wake:
            if self.closed:
                raise Closed("The engine was closed. Load the model again with tamis.load().")
            if entry is None or self._admission.fits(self._scheduler.tokens, cost()):
                enter()
            elif entry.stays:
                entry.room = Future()
                self._admission.stand(Standing(ticket.future, entry.room, cost, enter))
            else:
                raise self._refused()
            if entry is not None and not more:
                entry.let_in = True
            self._run_threads()
            self._wake.notify_all()
        ticket.future.add_done_callback(partial(self._settle, ticket))
        return ticket.future

    def summary(self) -> Mapping[str, Any]:
        """What waits now, and the counters."""
        with self._wake:
            return {
                "queued_sequences": self._scheduler.count,
                "queued_tokens": self._scheduler.tokens,
                "score_cache_hits": self._kept.hits,
                **self.counters.summary(),
            }

    def close(self) -> list[threading.Thread] | None:
        """Nothing comes in any more, and devices get nothing; whoever waits gets `Closed`.

        Returns:
            The devices' threads that end now; None if it was closed before.
        """
        with self._wake:
            if self.closed:
                return None
            self.closed = True
            self._wake.notify_all()
            threads = [device.thread for device in self._devices if device.thread is not None and device.alive()]
        self._drop(Closed("The engine was closed while this request waited. Load the model again with tamis.load()."))
        return threads

    def _enqueue(
        self, ticket: Ticket, sequences: Sequence[Tokens], keys: list[bytes], job: Job[Any], party: Party | None
    ) -> None:
        if party is not None:
            party.let_in = True
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
        if not ticket.left:
            self._deliver(ticket)

    def _cost(self, sequences: Sequence[Tokens], keys: list[bytes]) -> int:
        """The tokens that they would add to the queue."""
        new = {key: tokens for tokens, key in zip(sequences, keys, strict=True) if key not in self._pending}
        return sum(self._devices[0].cost(tokens) for key, tokens in new.items() if key not in self._kept)

    def _refused(self) -> Overloaded:
        self.counters.refused += 1
        return self._admission.refusal(self._scheduler.tokens)

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
        while (first := self._admission.following(self._scheduler.tokens)) is not None:
            first.enter()
            resolve(first.room, None)
            self._wake.notify_all()

    def _drop(self, error: BaseException, died: Device | None = None) -> None:
        """Whoever waits gets `error`; if a device died and another lives, the other goes on with what waits."""
        with self._wake:
            if died is not None:
                died.thread = None  # the next call starts another
                if any(device.alive() for device in self._devices):
                    return
            pending, self._pending = list(self._pending.values()), {}
            line = self._admission.empty()
            for work in pending:
                self._scheduler.drop(work)
        self.fail(pending, error)
        for one in line:
            reject(one.asks, error)
            reject(one.room, error)

    # -- for the devices' threads: `tamis.engine.device.Exchange` ----------------------------------------------------

    def _run_threads(self) -> None:
        for number, device in enumerate(self._devices):
            if not device.alive():  # the first call, after a thread died, or in a child after a fork
                device.start(self, f"tamis-{self._name}-{number}")

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
