"""Two loads of one checkpoint share one engine. Loading is single-flight: ten threads that ask at once load once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: Future[T] = field(default_factory=Future)
    holders: int = 0


class Shared(Generic[T]):
    """Values that are made once and counted.

    A failed load is not remembered: whoever waited for it gets its error, and the next call tries again. A value that
    was given back by its last holder is closed at once. One whose holders were garbage-collected stays for whoever
    takes it next, as frameworks rebuild their objects between calls; `idle` of those are kept, the newest.

    Args:
        close: Called with a value that is no longer held.
        idle: How many values without a holder are kept.
    """

    def __init__(self, close: Callable[[T], None], idle: int = 1) -> None:
        self._close = close
        self._idle = idle
        self._entries: dict[Hashable, _Entry[T]] = {}
        self._dropped: SimpleQueue[Hashable] = SimpleQueue()
        self._lock = threading.Lock()
        _ALL.add(self)

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value under `key`, made by `make` if there is none."""
        with self._lock:
            first = key not in self._entries
            entry = self._entries.pop(key, None) or _Entry()
            self._entries[key] = entry  # the newest is last
            entry.holders += 1
            surplus = self._settle()
        for value in surplus:
            self._close(value)
        if first:
            try:
                entry.value.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._entries.get(key) is entry:
                        del self._entries[key]
                entry.value.set_exception(error)
                raise
        return entry.value.result()

    def give_back(self, key: Hashable) -> None:
        """Ends one holder's share; the last one closes the value."""
        with self._lock:
            surplus = self._settle()
            entry = self._entries[key]
            entry.holders -= 1
            if not entry.holders:
                del self._entries[key]
                surplus.append(entry.value.result())
        for value in surplus:
            self._close(value)

    def drop(self, key: Hashable) -> None:
        """Ends one holder's share without closing. Safe in a finalizer: it takes no lock of ours."""
        self._dropped.put(key)

    def _settle(self) -> list[T]:
        while not self._dropped.empty():
            self._entries[self._dropped.get()].holders -= 1
        idle = [key for key, entry in self._entries.items() if not entry.holders]
        return [self._entries.pop(key).value.result() for key in idle[: max(0, len(idle) - self._idle)]]

    def _after_fork(self) -> None:
        """In a child, the thread that was loading is gone, and may have held the lock: who comes next loads."""
        self._lock = threading.Lock()
        self._entries = {key: entry for key, entry in self._entries.items() if entry.value.done()}


_ALL: WeakSet[Shared[Any]] = WeakSet()


def _renew_all() -> None:
    for shared in list(_ALL):
        shared._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
