"""Free memory goes back to the system while much is run.

glibc keeps for itself what is freed. Batches of many sizes, and rows that live on between them, leave holes in it, so
that a long job would take more and more (figures in benchmarks/RESULTS.md). `malloc_trim` gives whole free pages back,
which takes some milliseconds.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache

BATCHES = 20  # run since the last time: a few requests now and then find their memory as they left it
SECONDS = 1.0  # since the last time
SHARE = 0.0025  # of the time that it may take


class Trimmer:
    """Calls `malloc_trim` after many batches, and not often; where there is none it does nothing.

    Args:
        trim: What is called, as malloc_trim(0) is.
        clock: Seconds.
    """

    def __init__(
        self, trim: Callable[[int], object] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._trim = malloc_trim() if trim is None else trim
        self._clock = clock
        self._batches = 0
        self._next = clock() + SECONDS

    def ran(self) -> None:
        """A batch was run."""
        self._batches += 1
        if self._batches < BATCHES or self._trim is None or (start := self._clock()) < self._next:
            return
        self._trim(0)
        end = self._clock()
        self._batches = 0
        self._next = end + max(SECONDS, (end - start) / SHARE)


@cache
def malloc_trim() -> Callable[[int], object] | None:
    """Gives all free pages back but so many bytes; None without glibc. Other Python threads run meanwhile."""
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found
