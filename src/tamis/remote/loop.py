"""One event loop in a thread of its own, where all HTTP of the process happens.

An httpx client belongs to the loop that it was first used on, and fails on any other. Callers have many: each
`asyncio.run` is a new one, some threads have none, and some call synchronously from inside a running one. So none of
theirs is used. Work is handed over with `submit`, which gives a `concurrent.futures.Future`, the one thing that every
kind of caller can wait for; connections outlive the callers' loops, and are shared by all of them.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from tamis.steps import reject, resolve

T = TypeVar("T")

_PATIENCE = 2.0  # seconds that the end of the process waits for connections to be closed


class Closable(Protocol):
    """What lives on the loop."""

    async def aclose(self) -> None:
        """Ends it."""


_lock = threading.RLock()  # the garbage collector may close a client anywhere, in here too
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_tasks: set[asyncio.Task[Any]] = set()  # the loop itself holds its tasks weakly
_living: set[Closable] = set()
_abandoned: list[Any] = []


def submit(work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Runs `work()` on the loop, in the caller's context. Whoever ends the future in another way cancels the work."""
    future: Future[T] = Future()
    loop = _running()

    def begin() -> None:
        if future.done():
            return
        task = loop.create_task(work())
        _tasks.add(task)
        task.add_done_callback(settle)
        future.add_done_callback(lambda _: None if task.done() else loop.call_soon_threadsafe(task.cancel))

    def settle(task: asyncio.Task[T]) -> None:
        _tasks.discard(task)
        error = CancelledError() if task.cancelled() else task.exception()
        if error is None:
            resolve(future, task.result())
        else:
            reject(future, error)

    loop.call_soon_threadsafe(begin)
    return future


def is_current(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether it is the loop of this process, and not that of the one it was forked from."""
    return loop is _loop


def born(one: Closable) -> None:
    """Called on the loop: `one` is closed with it, at the latest."""
    _living.add(one)


async def bury(one: Closable) -> None:
    """Called on the loop: closes `one` now."""
    _living.discard(one)
    await one.aclose()


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="tamis-remote", daemon=True)
            _thread.start()
        return _loop


async def _last() -> None:
    mine = asyncio.current_task()
    others = [task for task in _tasks if task is not mine]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for one in list(_living):
        await bury(one)


@atexit.register
def _stop() -> None:
    global _loop
    if _loop is None or _thread is None:
        return
    wait([submit(_last)], _PATIENCE)
    with _lock:
        loop, _loop = _loop, None
    loop.call_soon_threadsafe(loop.stop)
    _thread.join(_PATIENCE)
    with suppress(RuntimeError):  # it is still running: something on it blocks
        loop.close()


def _forget() -> None:
    """In a forked child: the thread is not there, and the sockets are the parent's. Both are left as they are."""
    global _lock, _loop, _tasks, _living
    _abandoned.append((_loop, _tasks, _living))
    _lock, _loop, _tasks, _living = threading.RLock(), None, set(), set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
