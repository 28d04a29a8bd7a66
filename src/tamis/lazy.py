"""A reranker that is loaded on first use, once for everyone: what both adapters hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tamis import Reranker


class LazyReranker:
    """`load(**options)`, run on first use.

    It runs in a thread of its own, so that no event loop stands still meanwhile, no place in an executor is taken by
    those who wait, and a caller who is cancelled takes nothing from the others. A load that failed raises for all who
    waited for it, and the next call tries again. Deep copies are the same object; pickles are not loaded.

    Args:
        load: Usually `tamis.load`.
        options: Its keyword arguments.
    """

    def __init__(self, load: Callable[..., Reranker], options: dict[str, Any]) -> None:
        self.options = options
        self._load = load
        self._lock = threading.Lock()
        self._future: Future[Reranker] | None = None

    def over(self, options: dict[str, Any]) -> LazyReranker:
        """This one if it has these options, else a new one: an adapter's fields may be assigned after a load."""
        return self if options == self.options else LazyReranker(self._load, options)

    def get(self) -> Reranker:
        """The reranker; the calling thread waits for it."""
        return self._loading().result()

    async def aget(self) -> Reranker:
        """The reranker, from any event loop, without blocking it."""
        import asyncio

        future = self._loading()
        return future.result() if future.done() else await asyncio.wrap_future(future)

    def _loading(self) -> Future[Reranker]:
        with self._lock:
            future = self._future
            if future is None or (future.done() and future.exception() is not None):
                self._future = future = Future()
                future.set_running_or_notify_cancel()  # from here on, cancelling one waiter leaves the others alone
                threading.Thread(target=self._run, args=(future,), name="tamis-load", daemon=True).start()
            return future

    def _run(self, future: Future[Reranker]) -> None:
        try:
            future.set_result(self._load(**self.options))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            future.set_exception(error)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._load, self.options)
