"""The calls of one reranker: how their steps are driven, counted, and ended together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from tamis import telemetry
from tamis.engine.counters import quantiles
from tamis.errors import Closed
from tamis.inputs import check_timeout
from tamis.steps import Request, Steps, late

T = TypeVar("T")

NEWEST = 1024  # requests that latencies are taken of


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """What is to be run.

    Attributes:
        operation: Its name in spans.
        passages: How many it has.
        steps: Its work.
    """

    operation: str
    passages: int
    steps: Steps[T]


class Calls:
    """Runs calls for threads and for event loops, until it is closed.

    Args:
        model: Whose they are, for spans and errors.
        mode: The model's mode.
    """

    def __init__(self, model: str, mode: str) -> None:
        self._model, self._mode = model, mode
        self._requests: WeakSet[Request[Any]] = WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        self._latencies: deque[float] = deque(maxlen=NEWEST)  # seconds
        self._count = 0

    def run(self, call: Call[T], timeout: float | None = None) -> T:
        """Drives it in the caller's thread."""
        check_timeout(timeout)
        return self._open(call, timeout).run(timeout)

    def start(self, call: Call[T], timeout: float | None = None) -> Future[T]:
        """Drives it on pool threads, and returns at once. Who waits for the future ends it when `timeout` is over."""
        return self._open(call, timeout).start()

    async def arun(self, call: Call[T], timeout: float | None = None) -> T:
        """Drives it on pool threads, for an event loop. Cancelling withdraws what has not run yet."""
        import asyncio

        check_timeout(timeout)
        future = self.start(call, timeout)
        waiting = asyncio.wrap_future(future)
        try:
            # Not wait_for: its TimeoutError cannot be told from one that the steps themselves raise.
            done, _ = await asyncio.wait([waiting], timeout=timeout)
            if not done:
                raise late(timeout)
            return waiting.result()
        finally:
            if not waiting.done():
                waiting.cancel()
                future.cancel()

    def summary(self) -> Mapping[str, Any]:
        """How many were answered, and the newest ones' latencies in seconds."""
        with self._lock:
            return {"requests": self._count, **quantiles("latency", self._latencies)}

    def close(self) -> bool:
        """Whoever waits gets `Closed`, and so does every later call. False if that was done before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            waiting = list(self._requests)
        for request in waiting:
            request.fail(self._closed_error())
        return True

    def _open(self, call: Call[T], timeout: float | None) -> Request[T]:
        request = Request(self._timed(call.steps, time.perf_counter()), timeout)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._requests.add(request)
        about = {"model": self._model, "mode": self._mode, "passages": call.passages}
        telemetry.started(call.operation, about, request.future)
        return request

    def _timed(self, steps: Steps[T], start: float) -> Generator[Any, None, T]:
        result = yield from steps
        with self._lock:
            self._latencies.append(time.perf_counter() - start)
            self._count += 1
        return result

    def _closed_error(self) -> Closed:
        return Closed(f"This reranker ({self._model}) was closed. Load it again with tamis.load().")
