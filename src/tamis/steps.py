"""How a request runs: one description, driven by a waiting thread or by an event loop alike.

A scorer writes its work as a generator. It submits sequences to an engine, yields the futures that it wants to
wait for, and goes on when they are done; what it returns is the result. Nothing in it blocks, so that the same
generator serves a synchronous caller, who drives it in his own thread, and any number of event loops, for which
pool threads drive it. The core holds no asyncio object.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

from tamis.errors import DeadlineExceeded

T = TypeVar("T")

Pending: TypeAlias = Sequence["Future[Any]"]
Steps: TypeAlias = Generator[Pending, None, T]


_deadline: ContextVar[float | None] = ContextVar("tamis_deadline", default=None)


def deadline() -> float | None:
    """When the caller of the steps that run now gives up, by `time.monotonic`; None if he waits as long as it takes.

    It is enforced by who drives the steps. They may ask in order not to begin what cannot end in time.
    """
    return _deadline.get()


@dataclass(slots=True, eq=False)
class Party:
    """Requests of one call: the queue may be full of them, for which none of them is refused.

    Attributes:
        let_in: Whether a part of one of them has come into a queue.
    """

    let_in: bool = False


_patient: ContextVar[bool] = ContextVar("tamis_patient", default=False)
_party: ContextVar[Party | None] = ContextVar("tamis_party", default=None)


def patient() -> bool:
    """Whether the steps that run now wait where a queue is full, whatever the model was loaded with."""
    return _patient.get()


def party() -> Party | None:
    """What the request whose steps run now belongs to."""
    return _party.get()


@contextmanager
def patience(wanted: bool, together: Party) -> Iterator[None]:
    """Requests that are made inside belong together, and wait where a queue is full, if it is wanted."""
    patients, parties = _patient.set(wanted or patient()), _party.set(together)
    try:
        yield
    finally:
        _patient.reset(patients)
        _party.reset(parties)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    """Threads that tokenise and finish for asynchronous callers; they never wait for a device."""
    return ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1), thread_name_prefix="tamis-steps")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has the executor's object, but not its threads


class Request(Generic[T]):
    """One generator of steps on its way to its result.

    `future` is resolved on every path: with the result, with the error that the steps raised, with the error given
    to `fail`, or cancelled. Whatever the request still has waiting in an engine is withdrawn at that moment.

    Args:
        steps: What to run.
        timeout: What `deadline` tells them, in seconds from now.
    """

    def __init__(self, steps: Steps[T], timeout: float | None = None) -> None:
        self.future: Future[T] = Future()
        self._steps = steps
        self._context = copy_context()  # the caller's: pool threads have none of it
        self._context.run(_deadline.set, None if timeout is None else time.monotonic() + timeout)
        self._pending: Pending = ()
        self._lock = threading.Lock()

    def run(self, timeout: float | None = None) -> T:
        """Drives the steps in the calling thread and returns their result.

        Raises:
            DeadlineExceeded: They took longer than `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while not self.future.done():
                if self._advance():
                    left = None if end is None else end - time.monotonic()
                    waiting = wait(self._pending, left, FIRST_EXCEPTION).not_done
                    if end and time.monotonic() >= end and (waiting or not self._pending):
                        self.fail(late(timeout))
        finally:
            self.future.cancel()
            self._withdraw()
            self._steps.close()
        return self.future.result()

    def start(self) -> Future[T]:
        """Drives the steps on pool threads, and returns at once."""
        self.future.add_done_callback(lambda _: self._withdraw())
        self._later()
        return self.future

    def fail(self, error: BaseException) -> None:
        """Ends the request with `error`, unless it is done already."""
        reject(self.future, error)
        self._withdraw()

    def _go_on(self) -> None:
        if self.future.done():
            self._steps.close()  # here, where nothing else runs them: they give back what they hold
        elif self._advance():
            _Countdown(self._pending, self._later)

    def _later(self) -> None:
        try:
            _pool().submit(self._go_on)
        except RuntimeError as error:  # the interpreter is going down, and takes no more work
            reject(self.future, error)

    def _advance(self) -> bool:
        """Runs the steps up to their next wait; False when there is none."""
        error = next((e for e in map(_error_of, self._pending) if e), None)
        try:
            if error is None:
                pending = self._context.run(next, self._steps)
            else:
                pending = self._context.run(self._steps.throw, error)
        except StopIteration as stop:
            resolve(self.future, stop.value)
            return False
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to this request's caller
            reject(self.future, error)
            return False
        with self._lock:
            self._pending = pending
        if self.future.done():  # it ended while the steps were submitting
            self._withdraw()
            self._steps.close()
            return False
        return True

    def _withdraw(self) -> None:
        # An exception, not cancel(): concurrent.futures.wait() does not wake for a future that was only cancelled.
        with self._lock:
            pending = self._pending
        for future in pending:
            reject(future, CancelledError())


class _Countdown:
    """Calls `then` once, when all futures are done or the first has failed."""

    def __init__(self, futures: Pending, then: Callable[[], None]) -> None:
        self._left = len(futures)
        self._then = then
        self._lock = threading.Lock()  # held for a comparison only: callbacks run on the device's thread
        if not futures:
            then()
        for future in futures:
            future.add_done_callback(self._one)

    def _one(self, future: Future[Any]) -> None:
        failed = _error_of(future) is not None
        with self._lock:
            already = self._left <= 0
            self._left = 0 if failed else self._left - 1
            due = self._left <= 0 and not already
        if due:
            self._then()


def _error_of(future: Future[Any]) -> BaseException | None:
    """The error of a future that is done with one; None for one that succeeded or is still running."""
    if future.cancelled():
        return CancelledError()
    return future.exception(timeout=0) if future.done() else None


def late(timeout: float | None) -> DeadlineExceeded:
    """The error of a call that took too long."""
    return DeadlineExceeded(f"It took longer than timeout={timeout} seconds. Allow more, or send less at once.")


def resolve(future: Future[T], value: T) -> None:
    """Sets the result, unless the future was withdrawn meanwhile: then nobody waits for it."""
    with suppress(InvalidStateError):
        future.set_result(value)


def reject(future: Future[Any], error: BaseException) -> None:
    """Sets the error, unless the future is done already."""
    with suppress(InvalidStateError):
        future.set_exception(error)
