"""Prometheus' text: what went over HTTP, and the engine's own numbers. Of one process: a replica tells of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

COUNTERS = frozenset({  # of Reranker.stats(); its other numbers are gauges
    "requests", "batches", "sequences", "tokens", "prefix_tokens_reused", "device_seconds", "shared", "refused",
    "splits", "out_of_memory", "deaths", "score_cache_hits", "cache_hits", "cache_misses", "http_requests",
    "http_retries", "http_failures",
})  # fmt: skip
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The numbers of one app.

    Args:
        stats: `Reranker.stats`.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(stats))
        made: dict[str, Any] = {"registry": self._registry, "namespace": "tamis_serve"}
        self._answers = Counter("answers", "Answers, by path and status.", ["path", "status"], **made)
        self._seconds = Histogram("seconds", "From a request's head to the end of its answer.", ["path"],
                                  buckets=SECONDS, **made)  # fmt: skip
        self.open = Gauge("open_requests", "Requests under way.", **made)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request is done."""
        self._answers.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)


class _Engine(Collector):
    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[Any]:
        return iter(())  # so that registering does not collect

    def collect(self) -> Iterator[Any]:
        stats = self._stats()
        labels = [str(stats.get("model", "")), str(stats.get("mode", ""))]
        for name, value in stats.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            family = CounterMetricFamily if name in COUNTERS else GaugeMetricFamily
            metric = family(f"tamis_{name}", f"{name} of Reranker.stats().", labels=["model", "mode"])
            metric.add_metric(labels, float(value))
            yield metric
