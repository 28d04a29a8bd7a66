"""How long an event loop was held, told apart from a process whose machine stood still.

A thread beside the loop shows the difference. What it does not show is a call that keeps the interpreter's lock: no
thread runs then, and that time is taken off too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

EVERY = 0.005  # seconds between two ticks
LATE = 0.02  # seconds; a thread that only sleeps and comes later than this was kept from running


@dataclass
class Watched:
    """The moments at which a loop and a thread beside it were seen to run, by `time.perf_counter`."""

    loop: list[float] = field(default_factory=list)
    thread: list[float] = field(default_factory=list)

    def held(self, start: float = float("-inf"), end: float = float("inf")) -> float:
        """Seconds of the longest time, within `start` to `end`, in which the thread ran and the loop did not."""
        ticks = [tick for tick in self.loop if start <= tick <= end]
        assert len(ticks) > 5, "the loop was not watched for long enough"
        stalls = [(a, b) for a, b in pairwise(self.thread) if b - a > LATE]
        return max(b - a - sum(max(0.0, min(b, d) - max(a, c)) for c, d in stalls) for a, b in pairwise(ticks))


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    """Watches the running loop for as long as its block takes."""
    seen = Watched()
    over = threading.Event()

    def witness() -> None:
        seen.thread.append(time.perf_counter())
        while not over.wait(EVERY):
            seen.thread.append(time.perf_counter())

    async def tick() -> None:
        while True:
            seen.loop.append(time.perf_counter())
            await asyncio.sleep(EVERY)

    thread = threading.Thread(target=witness)
    thread.start()
    ticking = asyncio.create_task(tick())
    try:
        yield seen
    finally:
        ticking.cancel()
        over.set()
        thread.join()
        seen.loop.append(time.perf_counter())
        seen.thread.append(seen.loop[-1])
