"""A cache that is bounded in bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")

ENTRY_BYTES = 200  # of the key and the table, beside the value


class ByteLRU(Generic[T]):
    """Keeps the values that were used last, up to a number of bytes.

    >>> cache = ByteLRU(ENTRY_BYTES * 2 + 100)
    >>> cache.put("a", "A", 60); cache.put("b", "B", 60); cache.get("a"), cache.get("b")
    (None, 'B')
    """

    def __init__(self, limit: int, *, evicted: Callable[[Hashable, T], None] | None = None) -> None:
        self.limit = limit
        self._evicted = evicted  # called with what had to make room
        self.size = 0
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()
        _CACHES.add(self)

    def get(self, key: Hashable) -> T | None:
        """The value, which is now the newest; or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """Keeps a value of `size` bytes, at the cost of the oldest; one above the limit is not kept."""
        size += ENTRY_BYTES
        gone: list[tuple[Hashable, T]] = []
        with self._lock:
            if key in self._values:
                self.size -= self._values.pop(key)[1]
            if size > self.limit:
                return
            while self.size + size > self.limit:
                oldest, (old, freed) = self._values.popitem(last=False)
                self.size -= freed
                gone.append((oldest, old))
            self._values[key] = (value, size)
            self.size += size
        for oldest, old in gone if self._evicted else ():
            assert self._evicted is not None  # noqa: S101 - asked in the line above
            self._evicted(oldest, old)

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._values

    def items(self) -> list[tuple[Hashable, T]]:
        """Keys and values, the oldest first; none of them is newer for it."""
        with self._lock:
            return [(key, value) for key, (value, _) in self._values.items()]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._values.clear()
            self.size = 0

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # a thread of the parent may have held it


_CACHES: WeakSet[ByteLRU[Any]] = WeakSet()


def _renew_all() -> None:
    for cache in list(_CACHES):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
