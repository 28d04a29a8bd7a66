"""One device or several, everybody's sequences.

Callers submit token sequences and get a `concurrent.futures.Future`; each device has a thread that takes what the
scheduler gives it, two batches at a time, sorted by length. An idle device starts at once; while all are busy,
arrivals gather and share the next batches. Identical sequences that wait or run at the same time are computed once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from tamis.cache import ByteLRU
from tamis.engine.counters import Counters
from tamis.engine.scheduler import Job, Scheduler, Work
from tamis.engine.sequences import Tokens, by_length, cut
from tamis.errors import Closed, DeviceLost, OutOfMemory, Overloaded
from tamis.options import QUEUE_TOKENS
from tamis.steps import reject, resolve

logger = logging.getLogger(__name__)

WINDOW = 2  # batches that are taken, and sorted by length, together; a newcomer waits for no more than these
FRESH = 2  # batches that a request may have before others go first
CALM = 50  # batches without an out-of-memory error, after which the budget grows again
PATIENCE = 8  # sequences of a batch that fail by themselves, and none that does not, before the rest is given up

Outputs = NDArray[np.float32]
Row = NDArray[np.float32]


class Runner(Protocol):
    """A model on a device. The engine calls it from its own thread, and from no other."""

    @property
    def padded(self) -> bool:
        """Whether a batch costs its longest length times its size, instead of the sum of its lengths."""

    @property
    def survives_fork(self) -> bool:
        """Whether the model still works in a forked child: on a CPU it does, CUDA's contexts do not."""

    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """One row of float32 for each sequence, shape (len(batch), k). Raises torch.OutOfMemoryError as torch does."""

    def free(self) -> None:
        """Lets go of the model."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """Sequences that arrived together, and what has come back of them."""

    rows: list[Row | None]
    left: int
    arrived: float
    future: Future[Outputs] = field(default_factory=Future)
    works: list[Work[_Sequence]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence to run, and who takes its row: (ticket, place)."""

    tokens: Tokens
    key: bytes
    takers: list[tuple[_Ticket, int]]

    def wanted(self) -> bool:
        return any(not ticket.future.done() for ticket, _ in self.takers)


@dataclass(slots=True, eq=False)
class _Device:
    """One copy of the model, its thread, and what fits it."""

    runner: Runner
    budget: int
    full: int
    thread: threading.Thread | None = None
    calm: int = 0

    def alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


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
        self._devices = [_Device(runner, batch_tokens, batch_tokens) for runner in runners]
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
        self._scheduler: Scheduler[_Sequence] = Scheduler(self._batch_tokens // 4, FRESH * self._batch_tokens)
        self._pending: dict[bytes, Work[_Sequence]] = {}  # waiting or running, by digest
        self._rooms: deque[Future[None]] = deque()  # who waits for room in the queue
        self._counters = Counters()
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
                self._counters.refused += 1
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
        ticket = _Ticket([None] * len(sequences), len(sequences), time.perf_counter())
        if not sequences:
            resolve(ticket.future, np.zeros((0, 0), np.float32))
            return ticket.future
        keys = [_digest(tokens) for tokens in sequences]
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
                **self._counters.summary(),
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

    def _enqueue(self, ticket: _Ticket, sequences: Sequence[Tokens], keys: list[bytes], job: Job[Any]) -> None:
        new = []
        for place, (tokens, key) in enumerate(zip(sequences, keys, strict=True)):
            row = self._kept.get(key) if self._kept.limit else None
            if row is not None:
                ticket.rows[place] = row
                ticket.left -= 1
                continue
            work = self._pending.get(key)
            if work is None:
                work = self._pending[key] = Work(_Sequence(tokens, key, []), len(tokens))
                new.append(work)
            elif work.waiting:  # in another job's line, where it may have to wait for longer than in ours
                self._counters.shared += 1
                self._scheduler.share(job, work)
            else:
                self._counters.shared += 1
            work.payload.takers.append((ticket, place))
            ticket.works.append(work)
        self._scheduler.add(job, new)

    def _settle(self, ticket: _Ticket, _: Future[Outputs]) -> None:
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

    def _drop(self, error: BaseException, died: _Device | None = None) -> None:
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
        self._fail(pending, error)
        for room in rooms:
            reject(room, error)

    # -- the devices' threads ---------------------------------------------------------------------------------------

    def _run_threads(self) -> None:
        for number, device in enumerate(self._devices):
            if not device.alive():  # the first call, after a thread died, or in a child after a fork
                device.thread = threading.Thread(
                    target=self._loop, args=(device,), name=f"tamis-{self.name}-{number}", daemon=True
                )
                device.thread.start()

    def _loop(self, device: _Device) -> None:
        works: list[Work[_Sequence]] = []
        try:
            while works := self._take(device):
                self._run(device, works)
                works = []  # nothing of a request is kept while the thread waits for the next
        except BaseException as error:
            lost = DeviceLost(f"A thread of the engine died ({error!r}); the next call starts another.")
            lost.__cause__ = error
            self._counters.deaths += 1
            logger.exception("A thread of the engine died.")
            self._drop(lost, died=device)
            self._fail(works, lost)

    def _take(self, device: _Device) -> list[Work[_Sequence]]:
        """Waits for work; returns about `WINDOW` batches of it, or nothing when closed."""
        with self._wake:
            while not self._scheduler and not self.closed:
                self._wake.wait()
            if self.closed:
                return []
            works = self._scheduler.take(WINDOW * device.budget)
            self._make_room()
            return works

    def _run(self, device: _Device, works: list[Work[_Sequence]]) -> None:
        now = time.perf_counter()
        for work in works:
            self._counters.waited(now - min(ticket.arrived for ticket, _ in work.payload.takers))
        todo = [works[i] for i in by_length([work.cost for work in works])]
        while todo:
            todo = [work for work in todo if work.payload.wanted() or self._forget(work)]
            batches = cut([work.cost for work in todo], device.budget, padded=device.runner.padded)
            if not batches:
                return
            # Only the first is run: a batch that does not fit changes the budget, and with it all later cuts.
            batch, todo = todo[batches[0]], todo[batches[0].stop :]
            todo = self._one(device, batch) + todo

    def _one(self, device: _Device, batch: list[Work[_Sequence]]) -> list[Work[_Sequence]]:
        """Runs a batch and delivers it; returns what must run again in smaller batches."""
        from torch import OutOfMemoryError

        start = time.perf_counter()
        try:
            rows = device.runner.run([work.payload.tokens for work in batch])
        except OutOfMemoryError as error:
            return self._smaller(device, batch, error)
        except Exception as error:  # noqa: BLE001 - it belongs to those who sent it, and the engine lives on
            self._isolate(device, batch, error)
            return []
        self._counters.ran([work.cost for work in batch], time.perf_counter() - start, padded=device.runner.padded)
        self._grow(device)
        for work, row in zip(batch, rows, strict=True):
            self._give(work, row)
        return []

    def _give(self, work: Work[_Sequence], row: Row) -> None:
        with self._wake:
            self._pending.pop(work.payload.key, None)
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

    def _deliver(self, ticket: _Ticket) -> None:
        self._counters.answered(time.perf_counter() - ticket.arrived)
        resolve(ticket.future, np.stack([row for row in ticket.rows if row is not None]))

    def _forget(self, work: Work[_Sequence]) -> bool:
        """Nobody wants it any more: always False, for a filter."""
        with self._wake:
            if work.payload.wanted():  # somebody asked for it meanwhile
                return True
            self._pending.pop(work.payload.key, None)
        return False

    def _fail(self, works: Sequence[Work[_Sequence]], error: BaseException) -> None:
        for work in works:
            with self._wake:
                self._pending.pop(work.payload.key, None)
                takers = list(work.payload.takers)
            for ticket, _ in takers:
                reject(ticket.future, error)

    def _isolate(self, device: _Device, batch: list[Work[_Sequence]], error: Exception) -> None:
        """Finds the sequences that make the model raise by halving; the others of the batch are answered.

        Where not one half goes through and `PATIENCE` single sequences have failed, the model itself is broken.
        """
        parts, failed, answered = [(batch, error)], 0, False
        while parts:
            part, error = parts.pop()
            part = [work for work in part if work.payload.wanted() or self._forget(work)]
            if not part:
                continue
            if len(part) == 1 or (failed >= PATIENCE and not answered):
                failed += 1
                self._fail(part, error)
                continue
            self._counters.splits += 1
            for half in (part[len(part) // 2 :], part[: len(part) // 2]):
                try:
                    rows = device.runner.run([work.payload.tokens for work in half])
                except Exception as again:  # noqa: BLE001
                    parts.append((half, again))
                    continue
                answered = True
                for work, row in zip(half, rows, strict=True):
                    self._give(work, row)

    def _smaller(self, device: _Device, batch: list[Work[_Sequence]], error: BaseException) -> list[Work[_Sequence]]:
        self._counters.out_of_memory += 1
        device.calm = 0
        cost = sum(work.cost for work in batch)
        if len(batch) == 1:
            failure = OutOfMemory(
                f"A sequence of {cost} tokens alone does not fit the device's memory; load the model with a smaller "
                "max_length, or on another device."
            )
            failure.__cause__ = error.with_traceback(None)  # whose frames would keep the tensors alive
            self._fail(batch, failure)
            return []
        device.budget = max(1, min(device.budget, cost) // 2)
        logger.warning("Out of memory at %d tokens a batch; going on with %d.", cost, device.budget)
        return batch

    def _grow(self, device: _Device) -> None:
        """Slowly back to the full budget: what took the memory may have gone."""
        if device.budget < device.full:
            device.calm += 1
            if device.calm >= CALM:
                device.calm = 0
                device.budget = min(device.full, device.budget + max(1, device.budget // 8))

    def _after_fork(self) -> None:
        """In a child, the parent's threads and callers are gone, and its locks may be held for ever."""
        self._forked = True
        self._start()


def _digest(tokens: Tokens) -> bytes:
    digest = blake2b(tokens.ids.tobytes(), digest_size=16)
    if tokens.type_ids is not None:
        digest.update(b"/")
        digest.update(tokens.type_ids.tobytes())
    return digest.digest()


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
