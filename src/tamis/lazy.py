"""A model that is loaded on first use, once for everyone: what both adapters hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from tamis import Reranker  # noqa: F401 - named in a string below
    from tamis.rankrag.rag import RankRAG  # noqa: F401

T = TypeVar("T")


class Lazy(Generic[T]):
    """`load(**options)`, run on first use.

    It runs in a thread of its own, so that no event loop stands still meanwhile, no place in an executor is taken by
    those who wait, and a caller who is cancelled takes nothing from the others. A load that failed raises for all who
    waited for it, and the next call tries again. Deep copies are the same object; pickles are not loaded, and hold no
    key.

    Args:
        load: Usually `tamis.load` or `tamis.load_rankrag`.
        options: Its keyword arguments.
    """

    def __init__(self, load: Callable[..., T], options: dict[str, Any]) -> None:
        self.options = options
        self._load = load
        self._lock = threading.Lock()
        self._future: Future[T] | None = None

    def over(self, options: dict[str, Any]) -> Self:
        """This one if it has these options, else a new one: an adapter's fields may be assigned after a load."""
        return self if options == self.options else type(self)(self._load, options)

    def get(self) -> T:
        """What was loaded; the calling thread waits for it."""
        return self._loading().result()

    async def aget(self) -> T:
        """What was loaded, from any event loop, without blocking it."""
        import asyncio

        future = self._loading()
        return future.result() if future.done() else await asyncio.wrap_future(future)

    def _loading(self) -> Future[T]:
        with self._lock:
            future = self._future
            if future is None or (future.done() and future.exception() is not None):
                self._future = future = Future()
                future.set_running_or_notify_cancel()  # from here on, cancelling one waiter leaves the others alone
                threading.Thread(target=self._run, args=(future,), name="tamis-load", daemon=True).start()
            return future

    def _run(self, future: Future[T]) -> None:
        try:
            future.set_result(self._load(**self.options))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            future.set_exception(error)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._load, {name: value for name, value in self.options.items() if name != "api_key"})


class LazyReranker(Lazy["Reranker"]):
    """What `tamis.load` returns, loaded on first use."""


class LazyRankRAG(Lazy["RankRAG"]):
    """What `tamis.load_rankrag` returns, loaded on first use."""
