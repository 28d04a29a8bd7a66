"""What an engine has done, in numbers that a user can graph."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence

NEWEST = 2048  # times that quantiles are taken from


def quantiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99, by the nearest rank; zeros where there is nothing.

    >>> quantiles("wait", [0.4, 0.1, 0.2, 0.3])
    {'wait_p50': 0.2, 'wait_p95': 0.4, 'wait_p99': 0.4}
    """
    ranked = sorted(seconds)
    return {f"{name}_p{p}": ranked[-(-len(ranked) * p // 100) - 1] if ranked else 0.0 for p in (50, 95, 99)}


class Counters:
    """Counts and times. Any thread may add to them."""

    def __init__(self) -> None:
        self.refused = 0  # requests turned away
        self.shared = 0  # sequences that were asked for while they waited or ran already
        self.splits = 0  # batches halved to find what made the model raise
        self.out_of_memory = 0
        self.deaths = 0  # of the engine's threads
        self._batches = self._sequences = self._tokens = self._padding = self._spared = 0
        self._seconds = 0.0
        self._waits: deque[float] = deque(maxlen=NEWEST)
        self._latencies: deque[float] = deque(maxlen=NEWEST)
        self._lock = threading.Lock()

    def ran(self, lengths: Sequence[int], seconds: float, *, padded: bool, spared: int = 0) -> None:
        """A batch is done; `spared` of its tokens were not run, since others began with them."""
        with self._lock:
            self._batches += 1
            self._sequences += len(lengths)
            self._tokens += sum(lengths)
            self._padding += max(lengths) * len(lengths) - sum(lengths) if padded else 0
            self._spared += spared
            self._seconds += seconds

    def waited(self, seconds: float) -> None:
        """A sequence was taken from the queue."""
        with self._lock:
            self._waits.append(seconds)

    def answered(self, seconds: float) -> None:
        """All that was submitted together has been answered."""
        with self._lock:
            self._latencies.append(seconds)

    def summary(self) -> Mapping[str, float]:
        """Everything, by name; times in seconds."""
        with self._lock:
            computed = self._tokens + self._padding - self._spared
            return {
                "batches": self._batches,
                "sequences": self._sequences,
                "tokens": self._tokens,
                "prefix_tokens_reused": self._spared,
                "tokens_per_batch": self._tokens / self._batches if self._batches else 0.0,
                "sequences_per_batch": self._sequences / self._batches if self._batches else 0.0,
                "padding": self._padding / computed if computed else 0.0,
                "device_seconds": self._seconds,
                "shared": self.shared,
                "refused": self.refused,
                "splits": self.splits,
                "out_of_memory": self.out_of_memory,
                "deaths": self.deaths,
                **quantiles("queue_wait", self._waits),
                **quantiles("engine_latency", self._latencies),
            }
